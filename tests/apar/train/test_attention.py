"""Attention over packed rows against the visibility rule and torch's own attention."""

from __future__ import annotations

import random

import pytest
import torch
from apar.train import tile_attention as tiles_module
from apar.train.attention import FLEX_ATTENTION, TILE_ATTENTION, register, training_masks
from apar.train.dataset import collate, make_row
from apar.train.tile_attention import make_tiles, tile_attention
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from transformers import LlamaConfig, MistralConfig

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


@pytest.mark.parametrize("window", [None, 5])
@settings(deadline=None, max_examples=15)
@given(seed=SEEDS, queries=st.sampled_from([3, 16, 192]), kept=st.booleans(), heads=st.sampled_from([(2, 2), (6, 2)]))
def test_tiles_are_attention_with_a_mask(
    window: int | None, seed: int, queries: int, kept: bool, heads: tuple[int, int]
) -> None:
    batch = random_batch(seed, num_rows=2, spare=4)
    total = batch["input_ids"].shape[1]
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (
        torch.randn(count, total, dim, dtype=torch.float64, generator=generator, requires_grad=True)
        for count, dim in ((heads[0], 8), (heads[1], 8), (heads[1], 6))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles_module, "QUERIES_PER_TILE", queries)
        patch.setattr(tiles_module, "KEPT_BYTES", 1 << 40 if kept else 0)
        tiles = make_tiles(batch["ends"], batch["position_ids"].view(batch["ends"].shape), window, torch.float64)
        found = tile_attention(query, key, value, tiles, 0.3)
        in_tree = torch.zeros(total, dtype=torch.bool)
        for tile in tiles:
            in_tree[tile.begin : tile.end] = True
        assert (found[:, ~in_tree] == 0).all()
        gradient = torch.randn(found.shape, dtype=torch.float64, generator=generator)
        gradients = torch.autograd.grad(found, (query, key, value), gradient)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=visible(batch, window), scale=0.3, enable_gqa=True
    )[0]
    assert torch.allclose(found[:, in_tree], expected[:, in_tree], atol=1e-10)
    wanted = torch.autograd.grad(expected, (query, key, value), gradient * in_tree[:, None])
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("num_rows", [1, 3, 7])
def test_block_masks_say_the_same(window: int | None, num_rows: int) -> None:
    batch = random_batch(num_rows, num_rows, spare=200)  # padding alone fills whole blocks
    config = LlamaConfig() if window is None else MistralConfig(sliding_window=window)
    mask = training_masks(config, FLEX_ATTENTION, batch["ends"], batch["position_ids"], torch.float32)
    if isinstance(mask, dict):
        mask = mask["sliding_attention"]
    total = batch["input_ids"].shape[1]
    seen = visible(batch, window)
    places = torch.arange(total)
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

    query, key, value = (torch.randn(1, 2, total, 16) for _ in range(3))
    found = flex_attention(query, key, value, block_mask=mask)
    tiles = make_tiles(batch["ends"], batch["position_ids"].view(batch["ends"].shape), window, torch.float32)
    expected = tile_attention(query[0], key[0], value[0], tiles, 0.25)
    in_tree = expected.abs().sum((0, 2)) > 0
    assert torch.allclose(found[0][:, in_tree], expected[:, in_tree], atol=1e-5)


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


def test_what_the_cpu_cannot_do_is_an_error() -> None:
    model = tiny_model("gemma2").train()
    model.set_attn_implementation(TILE_ATTENTION)
    batch = random_batch(3, 1, spare=0)
    masks = training_masks(model.config, TILE_ATTENTION, batch["ends"], batch["position_ids"], torch.float32)
    with pytest.raises(ValueError, match="has no dropout, soft caps or sinks"):
        model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], attention_mask=masks, use_cache=False)
    with pytest.raises(ValueError, match="expected a mask made by training_masks"):
        model(input_ids=batch["input_ids"])
