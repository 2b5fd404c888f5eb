"""Without a paged cache "apar" is plain attention: everything transformers does gives what its own attention gives."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from apar.attention import apar_attention, apar_mask
from packaging.version import Version
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.apar.tiny_models import FAMILIES, VOCABULARY, WINDOW, reference_implementation, tiny_model

TOLERANCE = 1e-4

families = pytest.mark.parametrize("family", FAMILIES)


def random_prompts(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Prompts of these lengths in one batch, padded on the left."""
    torch.manual_seed(1)
    width = max(lengths)
    input_ids = torch.randint(3, VOCABULARY, (len(lengths), width))
    attention_mask = torch.ones(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        attention_mask[row, : width - length] = 0
        input_ids[row, : width - length] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def with_both(model: PreTrainedModel, family: str, run):
    """`run()` under transformers' own attention and under ours."""
    model.set_attn_implementation(reference_implementation(family))
    expected = run()
    model.set_attn_implementation("apar")
    return expected, run()


def generate(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **options):
    return model.generate(
        **inputs,
        **{"max_new_tokens": 16, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options,
        return_dict_in_generate=True,
        output_logits=True,
    )


def assert_same_generation(expected, got) -> None:
    assert torch.equal(got.sequences, expected.sequences)
    assert len(got.logits) == len(expected.logits)
    for step, (got_logits, expected_logits) in enumerate(zip(got.logits, expected.logits, strict=True)):
        torch.testing.assert_close(
            got_logits, expected_logits, atol=TOLERANCE, rtol=0, msg=lambda m, s=step: f"step {s}: {m}"
        )


def test_the_name_is_registered_for_attention_and_for_masks():
    assert ALL_ATTENTION_FUNCTIONS["apar"] is apar_attention
    assert ALL_MASK_ATTENTION_FUNCTIONS["apar"] is apar_mask


@families
@pytest.mark.parametrize("cache", ["dynamic", "static", None])
@pytest.mark.parametrize("lengths", [[19], [19, 4, 1, 11]], ids=["one prompt", "padded batch"])
def test_generate(family, cache, lengths):
    model = tiny_model(family)
    inputs = random_prompts(lengths)
    options = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    assert_same_generation(*with_both(model, family, lambda: generate(model, inputs, **options)))


def test_padding_reaches_the_attention():
    """The comparison above would pass if both sides ignored padding; a padded prompt must equal the prompt alone."""
    model = tiny_model("gemma2")
    padded = random_prompts([19, 4])
    alone = {"input_ids": padded["input_ids"][1:, -4:], "attention_mask": padded["attention_mask"][1:, -4:]}
    together, by_itself = generate(model, padded), generate(model, alone)
    assert torch.equal(together.sequences[1, -16:], by_itself.sequences[0, -16:])
    torch.testing.assert_close(together.logits[0][1], by_itself.logits[0][0], atol=TOLERANCE, rtol=0)


@families
def test_logits_of_a_forward_pass(family):
    model = tiny_model(family)
    inputs = random_prompts([23, 23, 5])
    visible = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, got = with_both(model, family, lambda: model(**inputs).logits[visible])
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@families
def test_static_cache_filled_in_two_parts(family):
    """The second part has more than one token and stands behind entries: no causal shortcut applies."""
    model = tiny_model(family)
    input_ids = random_prompts([17])["input_ids"]

    def run():
        cache = StaticCache(config=model.config, max_cache_len=40)
        first = model(input_ids=input_ids[:, :9], past_key_values=cache, use_cache=True).logits
        return torch.cat([first, model(input_ids=input_ids[:, 9:], past_key_values=cache, use_cache=True).logits], 1)

    with torch.no_grad():
        expected, got = with_both(model, family, run)
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@families
def test_gradients_in_training(family):
    model = tiny_model(family).train()
    inputs = random_prompts([23, 6])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)

    def run():
        model.zero_grad()
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    expected, got = with_both(model, family, run)
    assert len(got) == len(expected) > 10
    for got_gradient, expected_gradient in zip(got, expected, strict=True):
        assert expected_gradient.abs().max() > 0
        torch.testing.assert_close(got_gradient, expected_gradient, atol=TOLERANCE, rtol=TOLERANCE)


def test_dropout_only_while_training():
    model = tiny_model("gemma2")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    input_ids = random_prompts([12])["input_ids"]
    with torch.no_grad():
        still = [model(input_ids).logits for _ in range(2)]
        model.train()
        noisy = [model(input_ids).logits for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*noisy)


@families
def test_beam_search(family):
    model = tiny_model(family)
    inputs = random_prompts([9, 4])
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 10}
    assert_same_generation(*with_both(model, family, lambda: generate(model, inputs, **options)))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_assisted_generation(family):
    if family == "gemma2" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("transformers itself fails behind the end of a window, whatever the attention")
    model, assistant = tiny_model(family), tiny_model(family, seed=5)
    inputs = random_prompts([12])
    plain = generate(model, inputs)
    assisted = generate(model, inputs, assistant_model=assistant)
    looked_up = generate(model, inputs, prompt_lookup_num_tokens=3)
    assert torch.equal(assisted.sequences, plain.sequences)
    assert torch.equal(looked_up.sequences, plain.sequences)


@families
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=["bool", "float"])
def test_mask_given_by_the_user(family, dtype):
    """A 4D mask is taken as it is, for every layer."""
    model = tiny_model(family)
    input_ids = random_prompts([14, 14])["input_ids"]
    torch.manual_seed(2)
    visible = (torch.rand(2, 1, 14, 14) < 0.5).tril() | torch.eye(14, dtype=torch.bool)
    added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    with torch.no_grad():
        model.set_attn_implementation(reference_implementation(family))
        expected = model(input_ids, attention_mask=added).logits
        model.set_attn_implementation("apar")
        got = model(input_ids, attention_mask=visible if dtype == torch.bool else added).logits
        causal = model(input_ids).logits
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
    assert (got - causal).abs().max() > 0.01


def test_packed_sequences_stay_apart():
    """Positions that start again without a mask mean packed sequences in training, as for every other attention."""
    model = tiny_model("gemma2")
    input_ids = random_prompts([12])["input_ids"]
    positions = torch.tensor([[*range(5), *range(7)]])
    with torch.no_grad():
        packed = model(input_ids, position_ids=positions, use_cache=False).logits
        second = model(input_ids[:, 5:], use_cache=False).logits
    torch.testing.assert_close(packed[:, 5:], second, atol=TOLERANCE, rtol=0)


def test_attention_weights_are_not_given():
    """As with sdpa: asking for them in a call gives none."""
    model = tiny_model("llama")
    input_ids = random_prompts([5])["input_ids"]

    def run():
        return model(input_ids, output_attentions=True).attentions

    expected, got = with_both(model, "llama", run)
    assert got == expected


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_compiled_decoding_with_a_static_cache(family):
    """The whole model is one graph, run by torch itself: what a code generator makes of it is not ours."""
    model = tiny_model(family)
    input_ids = random_prompts([11, 11])["input_ids"]

    def run(forward):
        cache = StaticCache(config=model.config, max_cache_len=32)
        logits = [model(input_ids, past_key_values=cache, use_cache=True).logits[:, -1]]
        for step in range(3):
            position_ids = torch.full((2, 1), 11 + step)
            token = logits[-1].argmax(-1, keepdim=True)
            logits.append(
                forward(token, position_ids=position_ids, past_key_values=cache, use_cache=True).logits[:, -1]
            )
        return torch.stack(logits)

    with torch.no_grad():
        torch.compiler.reset()
        got = run(torch.compile(model.forward, backend="aot_eager", fullgraph=True))
        torch.testing.assert_close(got, run(model.forward), atol=TOLERANCE, rtol=0)


def test_encoder_attends_in_both_directions():
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
        )
    ).eval()
    inputs = random_prompts([12, 7])
    visible = inputs["attention_mask"].bool()
    with torch.no_grad():
        expected, got = with_both(model, "bert", lambda: model(**inputs).last_hidden_state[visible])
        changed = inputs | {"input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][0, -1] = 7
        assert not torch.equal(model(**changed).last_hidden_state[0, 0], model(**inputs).last_hidden_state[0, 0])
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_encoder_decoder_with_position_bias():
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    inputs = random_prompts([12, 7])
    assert_same_generation(*with_both(model, "t5", lambda: generate(model, inputs)))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_changing_the_implementation_in_the_middle(implementation):
    """The cache of a plain call is transformers' own, so a model may change its attention between two calls."""
    model = tiny_model("qwen3")
    input_ids = random_prompts([10])["input_ids"]
    with torch.no_grad():
        expected = model(input_ids).logits[:, 6:]
        cache = DynamicCache(config=model.config)
        model.set_attn_implementation(implementation)
        model(input_ids[:, :6], past_key_values=cache, use_cache=True)
        model.set_attn_implementation("apar")
        got = model(input_ids[:, 6:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both directions"])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 3.0}, {"s_aux": torch.tensor([0.5, -1.0])}], ids=["plain", "softcap", "sinks"]
)
def test_one_layer(options, is_causal):
    """Against float64. Head counts come from the tensors: a tensor-parallel layer has a share of those configured."""
    torch.manual_seed(0)
    module = torch.nn.Module().eval()
    module.is_causal = is_causal
    module.num_key_value_groups = 2
    module.config = SimpleNamespace(num_attention_heads=64, num_key_value_heads=32)
    query, key, value = torch.randn(3, 2, 5, 8), torch.randn(3, 1, 5, 8), torch.randn(3, 1, 5, 8)
    output, weights = apar_attention(module, query, key, value, None, scaling=0.3, **options)
    assert weights is None

    scores = 0.3 * query.double() @ key.double().transpose(2, 3)
    if "softcap" in options:
        scores = 3.0 * torch.tanh(scores / 3.0)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
    total = scores.exp().sum(-1, keepdim=True)
    if "s_aux" in options:
        total = total + options["s_aux"].double().exp().view(1, 2, 1, 1)
    expected = (scores.exp() / total @ value.double()).transpose(1, 2)
    torch.testing.assert_close(output.double(), expected, atol=1e-6, rtol=1e-5)

    overridden, _ = apar_attention(module, query, key, value, None, scaling=0.3, is_causal=not is_causal, **options)
    assert not torch.allclose(overridden, output, atol=1e-3)
    if options:
        dropped, _ = apar_attention(module, query, key, value, None, dropout=0.5, scaling=0.3, **options)
        assert torch.equal(dropped, output)  # the layer is not training


def test_position_bias_with_a_soft_cap_is_refused():
    module = SimpleNamespace(is_causal=True, training=False)
    states = torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match="position_bias together with softcap"):
        apar_attention(module, states, states, states, None, softcap=2.0, position_bias=torch.zeros(1, 2, 3, 3))


def test_windows_are_shorter_than_the_sequences_above():
    """Otherwise the tests would say nothing about windows."""
    model = tiny_model("mistral")
    input_ids = random_prompts([19])["input_ids"]
    changed = input_ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCABULARY
    with torch.no_grad():
        difference = (model(input_ids).logits - model(changed).logits).abs().amax(-1)[0]
    reach = 2 * (WINDOW - 1)  # two layers
    assert difference[reach] > 0
    assert difference[reach + 1 :].max() == 0
