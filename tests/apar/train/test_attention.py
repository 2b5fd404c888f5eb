"""Attention over packed rows against the visibility rule and torch's own attention."""

from __future__ import annotations

import random

import pytest
import torch
from apar.train import tile_attention as tiles_module
from apar.train.attention import FLEX_ATTENTION, TILE_ATTENTION, register, training_masks
from apar.train.dataset import collate, make_row
from apar.train.loss import target_logits
from apar.train.tile_attention import make_tiles, tile_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import LlamaConfig, MistralConfig
from transformers.integrations import flex_attention as flex_integration

from tests.apar.tiny_models import tiny_model
from tests.apar.train.trees import packed, random_ids, random_packed

register()
SEEDS = st.integers(0, 10**6)


def random_batch(seed: int, num_rows: int, spare: int) -> dict[str, torch.Tensor]:
    trees = [[random_packed(seed * 10 + row * 3 + number) for number in range(2)] for row in range(num_rows)]
    length = max(sum(map(len, row)) for row in trees) + spare
    return collate([make_row(row, length) for row in trees])


def visible(batch: dict[str, torch.Tensor], window: int | None) -> torch.Tensor:
    """[T, T] bool over the whole sequence."""
    num_rows, length = batch["ends"].shape
    ends = (batch["ends"] + torch.arange(num_rows)[:, None] * length).flatten()
    places = torch.arange(num_rows * length)
    positions = batch["position_ids"][0]
    seen = (places[:, None] >= places) & (places[:, None] < ends)
    if window is not None:
        seen &= positions[:, None] - positions < window
    return seen


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[Hq, T, Dv] with all scores at once."""
    key, value = (tensor.repeat_interleave(len(query) // len(tensor), 0) for tensor in (key, value))
    scores = query @ key.transpose(1, 2) * 0.3
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, scores.shape[1], 1)), -1)
    return torch.softmax(scores, -1)[..., : seen.shape[1]] @ value


@pytest.mark.parametrize("window", [None, 5])
@settings(deadline=None, max_examples=20)
@given(
    seed=SEEDS,
    queries=st.sampled_from([3, 16, 192]),
    kept=st.booleans(),
    heads=st.sampled_from([(2, 2), (6, 2)]),
    softcap=st.sampled_from([None, 0.7]),
    has_sinks=st.booleans(),
)
def test_tiles_are_attention_with_a_mask(
    window: int | None,
    seed: int,
    queries: int,
    kept: bool,
    heads: tuple[int, int],
    softcap: float | None,
    has_sinks: bool,
) -> None:
    batch = random_batch(seed, num_rows=2, spare=4)
    total = batch["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(count, total, dim, dtype=torch.float64, generator=generator, requires_grad=True)
        for count, dim in ((heads[0], 8), (heads[1], 8), (heads[1], 6))
    )
    learned = [query, key, value]
    sinks = None
    if has_sinks:
        sinks = torch.randn(heads[0], dtype=torch.float64, generator=generator, requires_grad=True)
        learned.append(sinks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles_module, "QUERIES_PER_TILE", queries)
        patch.setattr(tiles_module, "KEPT_BYTES", 1 << 40 if kept else 0)
        tiles = make_tiles(batch["ends"], batch["position_ids"].view(batch["ends"].shape), window, torch.float64)
        found = tile_attention(query, key, value, tiles, 0.3, softcap, sinks)
        in_tree = torch.zeros(total, dtype=torch.bool)
        for tile in tiles:
            in_tree[tile.begin : tile.end] = True
        assert (found[:, ~in_tree] == 0).all()
        gradient = torch.randn(found.shape, dtype=torch.float64, generator=generator)
        gradients = torch.autograd.grad(found, learned, gradient)
    expected = plain_attention(query, key, value, visible(batch, window), softcap, sinks)
    assert torch.allclose(found[:, in_tree], expected[:, in_tree], atol=1e-10)
    wanted = torch.autograd.grad(expected, learned, gradient * in_tree[:, None])
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("window", [None, 40])
@settings(deadline=None, max_examples=10)
@given(seed=SEEDS, num_rows=st.integers(1, 7), spare=st.integers(0, 300))
def test_block_masks_say_the_same(window: int | None, seed: int, num_rows: int, spare: int) -> None:
    batch = random_batch(seed, num_rows, spare)  # padding alone may fill whole blocks
    mask, seen = block_mask(batch, window), visible(batch, window)
    places = torch.arange(batch["input_ids"].shape[1])
    assert torch.equal(mask.mask_mod(0, 0, places[:, None], places[None, :]), seen)

    def listed(counts: torch.Tensor, numbers: torch.Tensor, block: int) -> set[int]:
        return set(numbers[0, 0, block, : counts[0, 0, block]].tolist())

    for block, queries in enumerate(seen.split(128)):
        partial = listed(mask.kv_num_blocks, mask.kv_indices, block)
        full = listed(mask.full_kv_num_blocks, mask.full_kv_indices, block)
        keys = queries.split(128, dim=1)
        assert not partial & full
        assert {other for other, part in enumerate(keys) if part.any()} <= partial | full
        assert all(keys[other].all() for other in full)  # these are computed without the mask


def block_mask(batch: dict[str, torch.Tensor], window: int | None) -> BlockMask:
    config = LlamaConfig() if window is None else MistralConfig(sliding_window=window)
    mask = training_masks(config, FLEX_ATTENTION, batch["ends"], batch["position_ids"], torch.float32)
    return mask["sliding_attention"] if isinstance(mask, dict) else mask


@pytest.mark.parametrize("window", [None, 40])
def test_flex_attention_takes_block_masks(window: int | None) -> None:
    batch = random_batch(3, num_rows=3, spare=200)
    query, key, value = (torch.randn(1, 2, batch["input_ids"].shape[1], 16) for _ in range(3))
    found = flex_attention(query, key, value, block_mask=block_mask(batch, window))
    tiles = make_tiles(batch["ends"], batch["position_ids"].view(batch["ends"].shape), window, torch.float32)
    expected = tile_attention(query[0], key[0], value[0], tiles, 0.25)
    in_tree = expected.abs().sum((0, 2)) > 0
    assert torch.allclose(found[0][:, in_tree], expected[:, in_tree], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_models_compute_the_same_with_flex_attention(family: str, monkeypatch) -> None:
    """What a model does with a block mask before it is compiled; transformers' own attention, with windows and caps."""
    monkeypatch.setattr(flex_integration, "compile_friendly_flex_attention", without_compiling)
    model, batch = tiny_model(family), random_batch(4, num_rows=2, spare=9)
    logits = []
    for implementation in (TILE_ATTENTION, FLEX_ATTENTION):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            logits.append(target_logits(model, batch, implementation, torch.float32))
    assert len(logits[0]) > 20
    assert torch.allclose(*logits, atol=1e-4)


def without_compiling(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, training=False, **options: object):
    return flex_attention(query, key, value, **options)


def test_blocks_without_a_hole_need_no_mask() -> None:
    numbers = random.Random(0)
    rows = [make_row([packed(random_ids(numbers, 600, 600), [[5] * 300])], 1000) for _ in range(2)]
    batch = collate(rows)
    mask = training_masks(LlamaConfig(), FLEX_ATTENTION, batch["ends"], batch["position_ids"], torch.float32)
    assert mask.full_kv_num_blocks.sum() > 20
    seen = visible(batch, None)
    for block, queries in enumerate(seen.split(128)):
        full = mask.full_kv_indices[0, 0, block, : mask.full_kv_num_blocks[0, 0, block]].tolist()
        assert all(queries[:, other * 128 : other * 128 + 128].all() for other in full)


def test_sparse_blocks_are_left_out() -> None:
    """Many rows: the number of blocks grows with the rows, not with their square."""
    batch = random_batch(1, 24, spare=300)
    mask = training_masks(LlamaConfig(), FLEX_ATTENTION, batch["ends"], batch["position_ids"], torch.float32)
    blocks = mask.kv_num_blocks.shape[-1]
    assert int(mask.kv_num_blocks.sum() + mask.full_kv_num_blocks.sum()) < 5 * blocks < blocks * blocks / 4


def test_windows_that_hide_nothing_cost_no_mask() -> None:
    batch = random_batch(2, 2, spare=0)
    longest = int(batch["position_ids"].max()) + 1
    for window, same in ((longest, True), (longest - 1, False)):
        config = tiny_model("gemma2").config
        config.sliding_window = window
        masks = training_masks(config, TILE_ATTENTION, batch["ends"], batch["position_ids"], torch.float32)
        assert isinstance(masks, dict) != same


def test_what_packed_rows_cannot_have_is_an_error() -> None:
    model = tiny_model("llama").train()
    model.set_attn_implementation(TILE_ATTENTION)
    batch = random_batch(3, 1, spare=0)
    with pytest.raises(ValueError, match="expected a mask made by training_masks"):
        model(input_ids=batch["input_ids"])
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ValueError, match=r"LlamaAttention: the model's config asks for attention dropout 0\.1"):
        target_logits(model, batch, TILE_ATTENTION, torch.float32)
