"""The emulator itself: right kernels pass, and each planted fault is found where it is."""

from __future__ import annotations

import pytest
import torch

from .emulator import EmulatorFault, run_faulty

NUMBERS = torch.arange(512, dtype=torch.int32)
REVERSED = NUMBERS[:128].flip(0)

# Of the four numbers that each of 128 threads has of a tile of a warpgroup's product.
THREADS = torch.arange(128, dtype=torch.int32)[:, None]
ROWS = THREADS // 32 * 16 + THREADS % 32 // 4 + torch.tensor([0, 0, 8, 8], dtype=torch.int32)
COLUMNS = THREADS % 4 * 2 + torch.tensor([0, 1, 0, 1], dtype=torch.int32)

RIGHT = {
    "reverse": REVERSED,
    "reverse warp": NUMBERS[:128].view(4, 32).flip(1).flatten(),
    "reuse": torch.cat([REVERSED, REVERSED + 128]),
    "named barriers": NUMBERS[:128].view(2, 64).flip(1).flatten(),
    "copy": REVERSED,
    "two groups": NUMBERS[128:256],
    "bulk": NUMBERS[:128],
    "last block": torch.arange(1, 6, dtype=torch.int32),
    "copy all": NUMBERS,
    "boxes": NUMBERS,
    "product": (ROWS * (1 + COLUMNS % 2)).flatten(),
    "product, transposed": (120 + COLUMNS).flatten(),
    "mixed": torch.cat([NUMBERS[:256:4], NUMBERS[256:288], NUMBERS[288:320].view(4, 2, 4).flip(1).flatten()]),
}

FAULTS = {
    "reverse, no barrier": "no barrier after the write|that nobody has written",
    "reverse warp, no barrier": "no barrier after the write|that nobody has written",
    "reuse, no barrier": "with no barrier after the (read|write)",
    "named barriers, wrong partner": "no barrier after the write|that nobody has written",
    "copy, no wait": "an asynchronous copy is still to fill",
    "two groups, wrong wait": "an asynchronous copy is still to fill",
    "bulk, no wait": "still to fill|that nobody has written",
    "bulk, no release": "with no barrier after the read|still to fill|more arrivals than",
    "bulk, wrong bytes": "no thread can go on",
    "last block, no barrier": "load of output .* races with a store of thread 70",
    "last block, no fence": "load of output .* races with a store of thread 70",
    "last block, stale cache": "through a cache that may be stale",
    "copy all, off by one": "load of 4 bytes at offset 2048 of input, which has 2048",
    "copy all, off by minus one": "load of 4 bytes at offset -4 of input",
    "write to input": "store to input, which is an input",
    "deadlock": "no thread can go on",
    "diverged collective": "lanes of one warp meet in shuffle_xor and in shuffle|in shuffle and in shuffle_xor",
    "shared memory nobody wrote": "that nobody has written",
    "boxes, no wait": "still to fill|that nobody has written|with no barrier after the write",
    "boxes, no barrier": "a barrier that was not initialized|that nobody has written",
    "boxes, no fence of the barrier": "with no fence after it was initialized",
    "boxes, not announced": "1024 bytes are copied where 0 were announced|still to fill|more arrivals than",
    "boxes, no fence of the proxy": "bulk copy over shared memory .* with no fence of the asynchronous proxy",
    "boxes, misplaced": "copy of a box at column byte 0 to shared memory at 128 is not aligned",
    "boxes, no release": "with no barrier after the (read|write)",
    "mixed, no hold": "an asynchronous copy is still to fill|ends with asynchronous copies under way",
    "mixed, late hold": "still to fill|after all its arrivals|ends with bulk copies under way",
    "product, no fence": "a product with no fence of its registers",
    "product, no commit": "a thread ends with products under way",
    "product, no wait": "a thread ends with products under way",
    "product, no fence of the proxy": "product over shared memory .* with no fence of the asynchronous proxy",
    "product, left out by a warp": "a warp has left out products of its warpgroup",
    "product, overwritten": "with no barrier after the (read|write)",
    "product, another in one warp": "the warps of a warpgroup start different products",
    "past shared memory": "at offset 4096 of shared memory, which has 1024",
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("seed", range(3))
def test_right_kernels_pass(name, seed):
    output = run_faulty(name, seed)
    expected = RIGHT[name]
    assert torch.equal(output[: len(expected)], expected)
    if name == "last block":
        assert output[200] == 15


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("seed", range(3))
def test_planted_faults_are_found(name, seed):
    with pytest.raises(EmulatorFault, match=r"^faulty_kernels\.cpp:\d+: ") as raised:
        run_faulty(name, seed)
    assert raised.match(FAULTS[name])


def test_machine_is_usable_after_a_fault():
    with pytest.raises(EmulatorFault):
        run_faulty("deadlock")
    assert torch.equal(run_faulty("reverse")[:128], REVERSED)
