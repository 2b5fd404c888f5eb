"""model.generate(..., custom_generate=apar.custom_generate): the same decoder behind transformers' own door."""

from __future__ import annotations

import apar
import pytest
import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from tests.apar.forking import CHILD, FORK, STOP, forking_grammar, forking_model, random_prompts
from tests.apar.test_generate import text_model
from tests.apar.tiny_tokenizers import byte_level_tokenizer

GRAMMAR = forking_grammar(max_depth=3)


@pytest.fixture(scope="module")
def model():
    return forking_model(seed=2)


def hook(model, ids, **options):
    options = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": STOP, "pad_token_id": 0, **options}
    return model.generate(ids, custom_generate=apar.custom_generate, **options)


def test_sequences_are_the_prompt_and_the_answer_in_reading_order(model) -> None:
    for prompt in random_prompts(4, seed=2):
        [output] = apar.generate(model, None, [prompt], grammar=GRAMMAR, max_new_tokens=32)
        end = [STOP] if output.finish_reason == "stop" else []
        assert hook(model, torch.tensor([prompt]), grammar=GRAMMAR)[0].tolist() == prompt + output.visible_ids + end
        everything = hook(model, torch.tensor([prompt]), grammar=GRAMMAR, keep_control_tokens=True)
        assert everything[0].tolist() == prompt + output.token_ids


def test_batches_are_padded_on_the_left_and_come_back_padded_on_the_right(model) -> None:
    prompts = random_prompts(5, seed=4)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    sequences = hook(model, ids, attention_mask=mask, grammar=GRAMMAR, max_live_branches=2)
    assert torch.equal(sequences[:, :longest], ids)
    outputs = apar.generate(model, None, prompts, grammar=GRAMMAR, max_new_tokens=32)
    for row, output in zip(sequences[:, longest:].tolist(), outputs, strict=True):
        answer = output.visible_ids + ([STOP] if output.finish_reason == "stop" else [])
        assert row == answer + [0] * (len(row) - len(answer))
    assert sequences.shape[1] - longest == max(
        len(output.visible_ids) + (output.finish_reason == "stop") for output in outputs
    )
    out = hook(model, ids, attention_mask=mask, grammar=GRAMMAR, return_dict_in_generate=True)
    assert torch.equal(out.sequences, sequences)


def test_a_model_without_control_tokens_gives_what_generate_gives(model) -> None:
    for prompt in random_prompts(3, seed=6):
        ids = torch.tensor([prompt])
        with pytest.warns(UserWarning, match="no control tokens known"):
            sequences = hook(model, ids)
        plain = model.generate(ids, max_new_tokens=32, do_sample=False, eos_token_id=STOP, pad_token_id=0)
        assert torch.equal(sequences, plain)


def test_control_tokens_may_stand_in_the_generation_config(model) -> None:
    ids = torch.tensor([random_prompts(1, seed=4)[0]])
    expected = hook(model, ids, grammar=GRAMMAR)
    model.generation_config.fork_token_id, model.generation_config.child_token_id = FORK, CHILD
    try:
        assert torch.equal(hook(model, ids, max_depth=3, max_children=3), expected)
    finally:
        del model.generation_config.fork_token_id, model.generation_config.child_token_id


def test_sampling_and_processors_follow_the_generation_config(model) -> None:
    prompts = random_prompts(3, seed=5, longest=1)
    ids = torch.tensor(prompts)
    settings = dict(do_sample=True, temperature=0.7, top_k=20, top_p=0.9, grammar=GRAMMAR, seed=11)
    direct = apar.generate(
        model, None, prompts, grammar=GRAMMAR, max_new_tokens=32, temperature=0.7, top_k=20, top_p=0.9, seed=11
    )
    for row, output in zip(hook(model, ids, **settings)[:, 1:].tolist(), direct, strict=True):
        assert row[: len(output.visible_ids)] == output.visible_ids
    torch.manual_seed(1)
    settings.pop("seed")
    drawn = hook(model, ids, **settings)
    torch.manual_seed(1)
    assert torch.equal(hook(model, ids, **settings), drawn)

    penalised = hook(model, ids, grammar=GRAMMAR, repetition_penalty=5.0, keep_control_tokens=True)
    assert not torch.equal(penalised, hook(model, ids, grammar=GRAMMAR, keep_control_tokens=True))


def test_stopping_criteria_end_single_branches(model) -> None:
    prompts = random_prompts(8, seed=2)
    outputs = apar.generate(model, None, prompts, grammar=GRAMMAR, max_new_tokens=32)
    free = max(outputs, key=lambda output: len(output.token_ids))
    prompt = free.prompt_ids
    longest = max(len(free.path_ids(branch.id)) for branch in free.branches)
    cut = len(prompt) + (longest - len(prompt)) // 2

    class LongPath(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.tensor([input_ids.shape[1] >= cut])

    sequences = hook(
        model,
        torch.tensor([prompt]),
        grammar=GRAMMAR,
        keep_control_tokens=True,
        stopping_criteria=StoppingCriteriaList([LongPath()]),
    )
    written = sequences[0, len(prompt) :].tolist()
    assert 0 < len(written) < len(free.token_ids)
    # The trunk up to its first fork is on every path; behind it the first branch is cut where its path is long enough.
    trunk = free.branches[0].token_ids[: cut - len(prompt)]
    before = trunk[: trunk.index(FORK) + 1] if FORK in trunk else trunk
    assert written[: len(before)] == before


def test_what_has_no_meaning_is_refused(model) -> None:
    ids = torch.tensor([random_prompts(1)[0]])
    with pytest.raises(ValueError, match="num_beams is 2, expected 1"):
        hook(model, ids, grammar=GRAMMAR, num_beams=2)
    cache = DynamicCache()
    cache.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), 0)
    with pytest.raises(ValueError, match="past_key_values holds 3 tokens, expected an empty cache"):
        hook(model, ids, grammar=GRAMMAR, past_key_values=cache)
    assert torch.equal(
        hook(model, ids, grammar=GRAMMAR, past_key_values=DynamicCache()), hook(model, ids, grammar=GRAMMAR)
    )
    with pytest.raises(ValueError, match="prompt 0 ends with a control token"):
        hook(model, torch.tensor([[5, FORK]]), grammar=GRAMMAR)


def test_a_loaded_model_knows_its_control_tokens(tmp_path) -> None:
    tokenizer = byte_level_tokenizer()
    text_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, tokenizer = apar.load(tmp_path)
    model.lm_head.bias = text_model(tokenizer).lm_head.bias
    ids = torch.tensor([tokenizer("1. Sleep:")["input_ids"]])
    sequences = model.generate(ids, custom_generate=apar.custom_generate, max_new_tokens=24, do_sample=False)
    [output] = apar.generate(model, tokenizer, "1. Sleep:", max_new_tokens=24)
    assert len(output.branches) > 1
    assert sequences[0, ids.shape[1] :].tolist()[: len(output.visible_ids)] == output.visible_ids
    model.save_pretrained(tmp_path)
    assert apar.load(tmp_path)[0].generation_config.fork_token_id == tokenizer.convert_tokens_to_ids("[Fork]")
