"""Trees decoded through a paged cache, step by step, against a plain model on every branch's own path."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import dataclass, field

import apar.attention
import pytest
import torch
from apar.cache import PagedCache, PagedLayer, Step, UnsupportedModelError, attention_windows
from apar.prefill import PromptStream, prefill
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    AutoConfig,
    BertConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    PreTrainedModel,
    Qwen3Config,
    T5Config,
)

from apar_ext import reference
from tests.apar.tiny_models import FAMILIES, VOCABULARY, WINDOW, reference_implementation, tiny_model

TOLERANCE = 1e-4
IMPOSSIBLE = 10**6  # an entry of a page table that must not be read

families = pytest.mark.parametrize("family", FAMILIES)


@dataclass
class Branch:
    """One stream and what it reads, kept the obvious way."""

    stream: int
    first_position: int
    context: list[tuple[int, int, int]] = field(default_factory=list)
    inherited: list[int] = field(default_factory=list)  # tokens of the path before the stream
    token_ids: list[int] = field(default_factory=list)

    @property
    def path(self) -> list[int]:
        return self.inherited + self.token_ids


class HandTree:
    """Branches over a paged cache whose pages are handed out at random; every unreachable entry is NaN."""

    def __init__(self, model: PreTrainedModel, page_size: int, num_pages: int = 64, num_streams: int = 8) -> None:
        self.model = model
        self.cache = PagedCache.for_model(model, num_pages, page_size)
        self.page_table = torch.full((num_streams, 96 // page_size), IMPOSSIBLE, dtype=torch.int32)
        self.first_position = torch.zeros(num_streams, dtype=torch.int32)
        self.free_pages = list(range(num_pages))
        random.Random(0).shuffle(self.free_pages)
        self.branches: list[Branch] = []
        poison(model, self.cache)

    def open(self, parent: Branch | None = None) -> Branch:
        """A new trunk, or a child that reads all that its parent reads now."""
        stream = len(self.branches)
        if parent is None:
            branch = Branch(stream, 0)
        else:
            context = [*parent.context, (parent.stream, 0, len(parent.token_ids))]
            branch = Branch(stream, len(parent.path), context, parent.path)
        self.first_position[stream] = branch.first_position
        self.branches.append(branch)
        return branch

    def grow(self, branch: Branch, token_ids: list[int]) -> None:
        """Take pages for tokens to come; `token_ids` may be fed afterwards."""
        branch.token_ids += token_ids
        for page in range(-(-len(branch.token_ids) // self.cache.page_size)):
            if self.page_table[branch.stream, page] == IMPOSSIBLE:
                self.page_table[branch.stream, page] = self.free_pages.pop()

    @torch.no_grad()
    def feed(self, rows: list[Branch], padding: int = 0) -> torch.Tensor:
        """Feed the last token of every branch in one pass. Returns logits [R, V], those of padding rows left out."""
        page_size = self.cache.page_size
        slots, positions, indptr, ranges, token_ids = [], [], [0], [], []
        for branch in rows:
            entry = len(branch.token_ids) - 1
            slots.append(int(self.page_table[branch.stream, entry // page_size]) * page_size + entry % page_size)
            positions.append(branch.first_position + entry)
            token_ids.append(branch.token_ids[-1])
            ranges += [*branch.context, (branch.stream, 0, entry + 1)]
            indptr.append(len(ranges))
        slots += [-1] * padding
        positions += [0] * padding
        token_ids += [0] * padding
        indptr += [indptr[-1]] * padding
        range_stream, range_begin, range_end = int32(ranges).t().contiguous()
        step = self.cache.make_step(
            self.page_table,
            int32(slots),
            int32(positions),
            int32(indptr),
            range_stream,
            range_begin,
            range_end,
            self.first_position,
        )
        with self.cache.stepping(step):
            logits = run(self.model, self.cache, token_ids, positions)
        return logits[: len(rows)]


def int32(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def run(model: PreTrainedModel, cache: PagedCache, token_ids: list[int], positions: list[int]) -> torch.Tensor:
    """Logits [R, V] of packed rows."""
    return model(
        input_ids=torch.tensor([token_ids]),
        position_ids=torch.tensor([positions]),
        past_key_values=cache,
        use_cache=True,
    ).logits[0]


@torch.no_grad()
def poison(model: PreTrainedModel, cache: PagedCache) -> None:
    """Fill every entry with NaN, after a pass of padding rows alone has allocated the pages."""
    empty = torch.zeros(0, dtype=torch.int32)
    step = cache.make_step(
        int32([[IMPOSSIBLE]]), int32([-1, -1]), int32([0, 0]), int32([0, 0, 0]), empty, empty, empty, int32([0])
    )
    with cache.stepping(step):
        assert run(model, cache, [0, 0], [0, 0]).isfinite().all()
    for layer in cache.layers:
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)


def path_logits(model: PreTrainedModel, family: str, token_ids: list[int]) -> torch.Tensor:
    """Logits [n, V] of one path under transformers' own attention."""
    model.set_attn_implementation(reference_implementation(family))
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0]
    model.set_attn_implementation("apar")
    return logits


def random_tokens(count: int, seed: int) -> list[int]:
    return [random.Random(seed * 1000 + i).randrange(3, VOCABULARY) for i in range(count)]


@families
@pytest.mark.parametrize("page_size", [8, 16])
@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_prefill_equals_a_plain_forward_pass(family, page_size, chunk_size):
    """The prompt is longer than the window and than a page, and its length is a multiple of nothing."""
    model = tiny_model(family)
    tree = HandTree(model, page_size)
    trunk = tree.open()
    tree.grow(trunk, random_tokens(23, 1))
    got = prefill(
        model,
        tree.cache,
        [PromptStream(trunk.stream, trunk.token_ids)],
        tree.page_table,
        tree.first_position,
        chunk_size=chunk_size,
        logits="all",
    )
    torch.testing.assert_close(got[0], path_logits(model, family, trunk.path), atol=TOLERANCE, rtol=0)


@families
@pytest.mark.parametrize("page_size", [8, 16])
def test_tree(family, page_size):
    """Two prompts; forks in the middle and at the end of pages, a child of a child, siblings at the same positions."""
    model = tiny_model(family)
    tree = HandTree(model, page_size)
    first, second = tree.open(), tree.open()
    tree.grow(first, random_tokens(13, 1))
    tree.grow(second, random_tokens(3, 2))
    prefill(
        model,
        tree.cache,
        [PromptStream(branch.stream, branch.token_ids) for branch in (first, second)],
        tree.page_table,
        tree.first_position,
        chunk_size=9,
    )
    live = [first, second]
    logits: dict[int, list[torch.Tensor]] = {}
    for step in range(24):
        if step in (4, 11):
            live.insert(live.index(first), tree.open(first))
        if step == 7:
            live.insert(live.index(second), tree.open(second))
        if step == 9:
            live.insert(0, tree.open(live[0]))  # a child of a child of the first trunk
        if step == 20:
            live.pop(0)
        for branch in live:
            tree.grow(branch, random_tokens(1, 100 * step + branch.stream))
        for branch, row in zip(live, tree.feed(live, padding=step % 3), strict=True):
            logits.setdefault(branch.stream, []).append(row)

    assert len(tree.branches) == 6
    assert max(len(branch.path) for branch in tree.branches) > 4 * WINDOW
    for branch in tree.branches:
        got = torch.stack(logits[branch.stream])
        expected = path_logits(model, family, branch.path)[-len(got) :]
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0, msg=lambda m, b=branch: f"{b}: {m}")


@families
def test_shared_prompt_and_prompts_behind_it(family):
    """A stream that nobody owns, filled in the same call as two prompts that read it, then one step of each."""
    model = tiny_model(family)
    tree = HandTree(model, 8)
    shared = tree.open()
    tree.grow(shared, random_tokens(12, 1))
    prompts = [tree.open(shared), tree.open(shared)]
    for branch, length in zip(prompts, (9, 1), strict=True):
        tree.grow(branch, random_tokens(length, 5 + length))
    streams = [PromptStream(b.stream, b.token_ids, context=b.context) for b in (shared, *prompts)]
    last = prefill(model, tree.cache, streams, tree.page_table, tree.first_position, chunk_size=10, logits="last")
    for branch, got in zip((shared, *prompts), last, strict=True):
        assert got.shape == (1, VOCABULARY)
        torch.testing.assert_close(got, path_logits(model, family, branch.path)[-1:], atol=TOLERANCE, rtol=0)
    for branch in prompts:
        tree.grow(branch, random_tokens(1, 50 + branch.stream))
    got = tree.feed(prompts)
    expected = torch.stack([path_logits(model, family, branch.path)[-1] for branch in prompts])
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)


def test_prompt_continued_in_a_second_call():
    model = tiny_model("gemma2")
    tree = HandTree(model, 8)
    trunk = tree.open()
    tree.grow(trunk, random_tokens(20, 3))
    arguments = (tree.page_table, tree.first_position)
    prefill(model, tree.cache, [PromptStream(0, trunk.token_ids[:9])], *arguments)
    got = prefill(model, tree.cache, [PromptStream(0, trunk.token_ids[9:], start=9)], *arguments, logits="all")
    torch.testing.assert_close(got[0], path_logits(model, "gemma2", trunk.path)[9:], atol=TOLERANCE, rtol=0)


def test_prefill_of_nothing_runs_no_model():
    model = tiny_model("llama")
    cache = PagedCache.for_model(model, 4, 8)
    assert prefill(model, cache, [PromptStream(0, [])], int32([[0]]), int32([0])) is None
    assert not cache.layers[0].is_initialized


def test_prefill_leaves_the_head_out(monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: pytest.fail("logits were computed"))
    cache = PagedCache.for_model(model, 4, 8)
    assert prefill(model, cache, [PromptStream(0, [3, 4, 5])], int32([[1]]), int32([0])) is None
    assert cache.layers[1].keys[1, :, :3].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size is 0, expected at least 1"),
        ({"logits": "some"}, "logits is 'some', expected 'none', 'last' or 'all'"),
        ({"prompts": [PromptStream(2, [3])]}, "stream is 2, expected 0 to 1"),
        ({"prompts": [PromptStream(1, [3] * 17)]}, "stream 1 would hold 17 entries.* expected at most 16"),
        ({"prompts": [PromptStream(1, [3] * 9, start=8)]}, "stream 1 would hold 17 entries"),
        ({"prompts": [PromptStream(1, [])], "logits": "last"}, "stream 1 has no tokens"),
    ],
)
def test_prefill_bad_input(options, message):
    model = tiny_model("llama")
    cache = PagedCache.for_model(model, 4, 8)
    arguments = {
        "prompts": [PromptStream(0, [3])],
        "page_table": int32([[0, 1], [2, 3]]),
        "first_position": int32([0, 0]),
    }
    with pytest.raises(ValueError, match=message):
        prefill(model, cache, **arguments | options)
    assert not cache.layers[0].is_initialized


def test_no_mask_is_built(monkeypatch):
    """Neither from rows nor for the guess that jumping positions are packed sequences."""
    monkeypatch.setattr(apar.attention, "sdpa_mask", lambda *a, **k: pytest.fail("a mask was built"))
    for family in ("gemma2", "llama"):
        tree = HandTree(tiny_model(family), 8)
        branches = [tree.open(), tree.open()]
        for branch in branches:
            tree.grow(branch, [5])
        tree.feed(branches)


def test_models_and_caches_side_by_side():
    """Steps of two models and of two caches of one model, interleaved, do not see each other."""
    models = {"mistral": tiny_model("mistral"), "gemma2": tiny_model("gemma2")}
    trees = [
        (family, HandTree(models[family], page_size))
        for family, page_size in (("mistral", 8), ("gemma2", 16), ("gemma2", 8))
    ]
    for number, (_, tree) in enumerate(trees):
        tree.open()
        tree.grow(tree.branches[0], random_tokens(1, number))
    for step in range(11):
        for number, (family, tree) in enumerate(trees):
            got = tree.feed(tree.branches)
            if step == 10:
                expected = path_logits(models[family], family, tree.branches[0].path)[-1:]
                torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=0)
            tree.grow(tree.branches[0], random_tokens(1, 100 * step + number))


def test_rows_may_come_as_a_batch():
    """R rows of length 1 are the same rows as one packed row of length R."""
    model = tiny_model("llama")
    results = []
    for packed in (True, False):
        cache = PagedCache.for_model(model, 4, 8)
        step = cache.make_step(
            int32([[0], [2]]),
            int32([0, 16]),
            int32([0, 0]),
            int32([0, 1, 2]),
            int32([0, 1]),
            int32([0, 0]),
            int32([1, 1]),
            int32([0, 0]),
        )
        shape = (1, 2) if packed else (2, 1)
        with torch.no_grad(), cache.stepping(step):
            output = model(
                torch.tensor([5, 6]).view(shape),
                position_ids=torch.zeros(shape, dtype=torch.long),
                past_key_values=cache,
            )
        results.append(output.logits.view(2, -1))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=0)


def test_compiled_steps():
    """The whole model with its cache is one graph, and steps of one size share it."""
    model = tiny_model("gemma2")
    token_ids = random_tokens(12, 1)
    page_table, first_position = int32([[2, 0]]), int32([0])
    torch.compiler.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    forward = torch.compile(model.forward, backend=graphs, fullgraph=True)
    results = []
    for call in (model.forward, forward):
        cache = PagedCache.for_model(model, 4, 8)
        poison(model, cache)
        prefill(model, cache, [PromptStream(0, token_ids[:9])], page_table, first_position)
        for entry in (9, 10, 11):
            slot = int32([int(page_table[0, 1]) * 8 + entry - 8])
            ends = (int32([0, 1]), int32([0]), int32([0]), int32([entry + 1]))
            step = cache.make_step(page_table, slot, int32([entry]), *ends, first_position)
            inputs = {"input_ids": torch.tensor([[token_ids[entry]]]), "position_ids": torch.tensor([[entry]])}
            with torch.no_grad(), cache.stepping(step):
                results.append(call(**inputs, past_key_values=cache, use_cache=True).logits[0, 0])
    for plain, compiled in zip(results[:3], results[3:], strict=True):
        torch.testing.assert_close(compiled, plain, atol=TOLERANCE, rtol=0)
    assert graphs.frame_count == 1


def test_pages_made_in_inference_mode_can_be_written_outside_of_it():
    model = tiny_model("llama")
    cache = PagedCache.for_model(model, 4, 8)
    with torch.inference_mode():
        prefill(model, cache, [PromptStream(0, [3, 4])], int32([[1]]), int32([0]))
    got = prefill(model, cache, [PromptStream(0, [5], start=2)], int32([[1]]), int32([0]), logits="all")
    torch.testing.assert_close(got[0], path_logits(model, "llama", [3, 4, 5])[2:], atol=TOLERANCE, rtol=0)


def test_pages_are_freed_with_the_cache():
    """Without waiting for the garbage collector: pages are most of the memory of a machine."""
    tree = HandTree(tiny_model("llama"), 8)
    pages = weakref.ref(tree.cache.layers[0].keys)
    gc.collect()
    gc.disable()
    try:
        tree.cache = None
        assert pages() is None
    finally:
        gc.enable()


def test_sizes():
    model = tiny_model("llama")
    cache = PagedCache.for_model(model, 5, 8)
    assert (cache.num_kv_heads, cache.group_size, cache.windows, cache.page_bytes) == (2, 3, (), 0)
    poison(model, cache)
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape == (5, 2, 8, 32)
        assert layer.keys.dtype == torch.float32
    assert cache.page_bytes == 2 * 2 * (2 * 8 * 32) * 4
    assert PagedCache.for_model(tiny_model("gpt_oss"), 5, 8).windows == (WINDOW,)


def test_tensor_parallel_heads():
    config = LlamaConfig(num_attention_heads=12, num_key_value_heads=4, hidden_size=96)
    cache = PagedCache(config, 4, tensor_parallel_size=2)
    assert (cache.num_kv_heads, cache.group_size) == (2, 3)
    with pytest.raises(ValueError, match="4 KV heads cannot be spread over tensor_parallel_size 3"):
        PagedCache(config, 4, tensor_parallel_size=3)


def test_layer_windows():
    mixed = Qwen3Config(
        num_hidden_layers=3,
        sliding_window=9,
        use_sliding_window=True,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    )
    assert attention_windows(mixed) == [None, 9, None]
    assert attention_windows(tiny_model("mistral").config) == [WINDOW, WINDOW]
    assert attention_windows(AutoConfig.for_model("gemma3")) == attention_windows(
        AutoConfig.for_model("gemma3").text_config
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MambaConfig(), "mamba: the model has no attention heads"),
        (JambaConfig(), "jamba: a layer is of type 'linear_attention'"),
        (Llama4TextConfig(), "llama4_text: a layer is of type 'chunked_attention'"),
        (T5Config(), "t5: encoder-decoder models are not supported"),
    ],
)
def test_unsupported_models(config, message):
    with pytest.raises(UnsupportedModelError, match=message):
        PagedCache(config, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 8), "num_pages is 0, expected at least 1"), ((4, 12), "page_size is 12, expected one of 8, 16")],
)
def test_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        PagedCache(LlamaConfig(), *arguments)


def test_unknown_kv_dtype():
    with pytest.raises(ValueError, match="kv_dtype: expected None or one of 'fp8', got 'int4'"):
        PagedCache(LlamaConfig(), 4, kv_dtype="int4")


@families
@pytest.mark.parametrize("scale", [None, 0.05])
def test_8_bit_caches(family, scale, monkeypatch):
    """As a plain cache whose keys and values are rounded before they are written, in a quarter of the memory."""
    model = tiny_model(family)
    prompt = PromptStream(0, list(range(1, 12)))

    def run(kv_dtype: str | None) -> tuple[torch.Tensor, PagedCache]:
        cache = PagedCache.for_model(model, 4, 8, kv_dtype=kv_dtype)
        if kv_dtype is not None and scale is not None:
            for layer in cache.layers:
                layer.k_scale = torch.full((cache.num_kv_heads,), scale)
                layer.v_scale = torch.full((cache.num_kv_heads,), 2 * scale)
        return prefill(model, cache, [prompt], int32([[2, 1]]), int32([0]), logits="all")[0], cache

    logits, cache = run("fp8")
    plain_logits, plain_cache = run(None)
    assert all(layer.keys.dtype == torch.float8_e4m3fn for layer in cache.layers)
    assert plain_cache.page_bytes == 4 * cache.page_bytes
    assert (logits - plain_logits).abs().max() > 10 * TOLERANCE

    def rounded(numbers: torch.Tensor, scale: float) -> torch.Tensor:
        return reference.to_e4m3(numbers / scale).float() * scale

    update = PagedLayer.update
    k_scale, v_scale = (1, 1) if scale is None else (scale, 2 * scale)
    monkeypatch.setattr(
        PagedLayer, "update", lambda layer, k, v: update(layer, rounded(k, k_scale), rounded(v, v_scale))
    )
    torch.testing.assert_close(logits, run(None)[0], rtol=TOLERANCE, atol=TOLERANCE)


def one_row(cache: PagedCache) -> Step:
    return cache.make_step(
        int32([[0]]), int32([0]), int32([0]), int32([0, 1]), int32([0]), int32([0]), int32([1]), int32([0])
    )


def test_steps_that_do_not_fit():
    cache = PagedCache.for_model(tiny_model("mistral"), 4, 8)
    step = one_row(cache)
    with pytest.raises(ValueError, match=r"window_plans has sizes \[\], expected \[7\]"):
        cache.step = Step(step.slots, step.plan)
    with pytest.raises(ValueError, match="slots has 2 rows, expected 1 as in the plan"):
        cache.step = Step(int32([0, 1]), step.plan, step.window_plans)
    assert cache.step is None


def test_a_step_ends_with_its_block_whatever_happens():
    cache = PagedCache.for_model(tiny_model("llama"), 4, 8)

    def interrupted():
        with cache.stepping(one_row(cache)):
            assert cache.step is not None
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert cache.step is None


class TestMisuse:
    """Everything that would give wrong numbers stops with an error instead, and before anything is written."""

    @pytest.fixture
    def model(self):
        return tiny_model("llama")

    @pytest.fixture
    def cache(self, model):
        cache = PagedCache.for_model(model, 4, 8)
        poison(model, cache)
        yield cache
        assert all(layer.keys.isnan().all() and layer.values.isnan().all() for layer in cache.layers)

    def call(self, model, cache, **options):
        inputs = {"input_ids": torch.tensor([[5]]), "position_ids": torch.tensor([[0]]), "past_key_values": cache}
        with cache.stepping(one_row(cache)):
            return model(**inputs | options)

    def test_another_attention_implementation(self, model, cache):
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            with pytest.raises(ValueError, match=f"attn_implementation is '{implementation}', expected 'apar'"):
                self.call(model, cache)

    def test_a_mask(self, model, cache):
        with pytest.raises(ValueError, match=r"attention_mask: came with shape \[1, 1\], expected None"):
            self.call(model, cache, attention_mask=torch.ones(1, 1))

    def test_no_positions(self, model, cache):
        with pytest.raises(ValueError, match="expected position_ids"):
            self.call(model, cache, position_ids=None)

    def test_no_step(self, model, cache):
        with torch.no_grad(), pytest.raises(ValueError, match="no step is set"):
            model(input_ids=torch.tensor([[5]]), position_ids=torch.tensor([[0]]), past_key_values=cache)

    def test_operations_of_other_caches(self, cache):
        for operation in (
            lambda: cache.crop(-1),
            lambda: cache.reorder_cache(torch.tensor([0])),
            lambda: cache.batch_repeat_interleave(2),
        ):
            with pytest.raises(NotImplementedError, match="branches are opened and ended by page tables"):
                operation()

    def test_generate(self, model, cache):
        with pytest.raises(ValueError, match="it has no one sequence length"):
            model.generate(torch.tensor([[5]]), past_key_values=cache, max_new_tokens=2)

    def test_reading_a_layer_as_a_tensor(self, cache):
        with pytest.raises(AttributeError, match="only attn_implementation='apar' can read it"):
            _ = cache.layers[0].shape


def test_ready_made_mask_gradient_and_dropout_are_refused():
    model = tiny_model("llama")
    cache = PagedCache.for_model(model, 4, 8)
    call = TestMisuse().call
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r"attention_mask: came with shape \[1, 1, 1, 1\], expected None"),
    ):
        call(model, cache, attention_mask=torch.ones(1, 1, 1, 1))
    with pytest.raises(ValueError, match="requires a gradient"):
        call(model, cache)
    model.train()
    model.model.layers[0].self_attn.attention_dropout = 0.5
    with torch.no_grad(), pytest.raises(ValueError, match=r"attention dropout is 0\.5, expected 0"):
        call(model, cache)


def test_a_bidirectional_model_is_refused():
    from transformers import BertLMHeadModel

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=1, intermediate_size=32
    )
    model = BertLMHeadModel(config).eval()
    model.set_attn_implementation("apar")
    with torch.no_grad(), pytest.raises(ValueError, match="expected"):
        TestMisuse().call(model, PagedCache.for_model(model, 4, 8))
