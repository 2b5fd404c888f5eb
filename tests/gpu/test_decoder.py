"""Decoding on a GPU: captured steps against plain ones, the promise of equal text, steps that wait for nothing."""

from __future__ import annotations

import warnings

import apar
import pytest
import torch
from apar.captured import CudaGraphs
from apar.choosers import TokenChooser
from apar.device_decoder import DeviceDecoder
from apar.record import Recorder, Request
from apar.room import make_room
from apar.run import apar_attention
from apar.sampling import Sampling

import apar_ext
from tests.apar.forking import compare_with_plain_model, forking_grammar, forking_model, random_prompts
from tests.apar.test_device_decoder import KeptGraphs
from tests.apar.test_equality import ROOMS

HAS_CUDA_KERNELS = torch.cuda.is_available() and bool(apar_ext.build_info()["cuda_built"])
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_CUDA_KERNELS, reason="no GPU, or no CUDA kernels in this build"),
]
MAX_NEW_TOKENS = 48
SAMPLINGS = [Sampling(), Sampling(0.8, 0.95, 40, seed=5)]


@pytest.fixture(autouse=True)
def exact_products():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def head_dim_64(family: str, seed: int) -> torch.nn.Module:
    """The kernels have no head_dim 32, which the tiny models of some families have."""
    model = forking_model(family, seed)
    if model.config.head_dim not in (64, 80, 96, 128, 256):
        pytest.skip(f"head_dim {model.config.head_dim} is for the CPU alone")
    return model.cuda()


def make_decoder(model, prompts, grammar, sampling, graphs, **options) -> tuple[DeviceDecoder, list[Request]]:
    limits = [len(prompt) + MAX_NEW_TOKENS for prompt in prompts]
    given = dict(page_size=16, max_pages=None, max_rows=None, max_live_branches=16, prefill_tokens=64) | options
    room = make_room(model, [len(prompt) for prompt in prompts], limits, grammar, **given)
    recorder = Recorder(len(prompts), room.max_slots, grammar, sampling=sampling)
    requests = [Request(*one) for one in zip(range(len(prompts)), prompts, limits, strict=True)]
    return DeviceDecoder(model, grammar, room, recorder, TokenChooser(sampling), graphs=graphs), requests


def run(decoder: DeviceDecoder, requests: list[Request]) -> list[apar.Output]:
    with apar_attention(decoder.model):
        for _ in decoder.run(requests):
            pass
    return [request.output for request in requests]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_captured_steps_write_what_plain_ones_do(sampling) -> None:
    model = head_dim_64("qwen3", 2)
    prompts = random_prompts(10, seed=9)
    outputs = []
    for capture in (True, False):
        graphs = CudaGraphs(torch.device("cuda"), capture=capture)
        decoder, requests = make_decoder(model, prompts, forking_grammar(), sampling, graphs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a step that cannot be captured warns
            outputs.append(run(decoder, requests))
        assert (graphs.num_replays > 0) == capture
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_branches_equal_greedy_generation_from_their_own_path(family: str) -> None:
    model = head_dim_64(family, 1)
    prompts = random_prompts(12, seed=1)
    outputs = apar.generate(model, None, prompts, grammar=forking_grammar(), max_new_tokens=MAX_NEW_TOKENS)
    on_host = model.cpu()
    comparison = compare_with_plain_model(on_host, family, outputs, forking_grammar(), MAX_NEW_TOKENS)
    assert comparison.trees_with_forks >= 3
    # The host sums in another order.
    assert comparison.ties <= 1 + comparison.tokens // 1000


def test_room_never_changes_what_is_written() -> None:
    """With the smallest pool branches wait for pages on the device; nothing is lost."""
    model = head_dim_64("qwen3", 2)
    prompts = random_prompts(10, seed=9)
    options = dict(grammar=forking_grammar(), max_new_tokens=MAX_NEW_TOKENS)
    expected = apar.generate(model, None, prompts, **options)
    assert max(output.stats.peak_branches for output in expected) > 2
    for name, room in ROOMS.items():
        assert apar.generate(model, None, prompts, **options, **room) == expected, name


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_mirror_is_the_forest(sampling) -> None:
    """Every step of the device is replayed by the host with the same result."""
    model = head_dim_64("qwen3", 2)
    decoder, requests = make_decoder(model, random_prompts(6, seed=3), forking_grammar(), sampling, None)
    run(decoder, requests)
    mirror, device = decoder.forest, decoder.on_device.to("cpu")
    assert not decoder.flights
    for name in ("state", "parent", "branch_id", "depth", "length", "num_pages", "order", "row_slot"):
        assert torch.equal(getattr(mirror, name), getattr(device, name)), name
    for name in ("num_free_pages", "num_free_slots", "next_branch_id", "num_rows"):
        assert mirror.counter(name) == device.counter(name), name


@pytest.mark.parametrize("capture", [True, False])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_step_waits_for_nothing(sampling, capture, monkeypatch) -> None:
    """Once what is made once is made, launching a step synchronises with nothing; capturing does, once per graph."""
    model = head_dim_64("qwen3", 2)
    graphs = CudaGraphs(torch.device("cuda"), capture=capture)
    decoder, requests = make_decoder(model, random_prompts(3, seed=9), forking_grammar(), sampling, graphs)
    launch, captured = decoder._launch, graphs._captured
    watched = []

    def watched_launch() -> None:
        watched.append(decoder.recorder.launches > 3)
        torch.cuda.set_sync_debug_mode("error" if watched[-1] else "default")
        try:
            launch()
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def unwatched_capture(function):
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        result = captured(function)
        torch.cuda.set_sync_debug_mode(before)
        return result

    monkeypatch.setattr(decoder, "_launch", watched_launch)
    monkeypatch.setattr(graphs, "_captured", unwatched_capture)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(decoder, requests)
    assert sum(watched) > 5


def test_graphs_take_nothing_from_the_host_after_their_capture() -> None:
    """The functions that are captured, kept and called again: `KeptGraphs`, on the device's tensors."""
    model = head_dim_64("qwen3", 2)
    prompts = random_prompts(4, seed=9)
    decoder, requests = make_decoder(model, prompts, forking_grammar(), Sampling(), KeptGraphs())
    kept = run(decoder, requests)
    decoder, requests = make_decoder(model, prompts, forking_grammar(), Sampling(), None)
    assert run(decoder, requests) == kept


def test_stop_strings_and_processors_on_a_gpu() -> None:
    model = head_dim_64("qwen3", 2)
    prompts = random_prompts(3, seed=9)
    options = dict(grammar=forking_grammar(), max_new_tokens=MAX_NEW_TOKENS)
    expected = apar.generate(model, None, prompts, **options)
    with pytest.warns(UserWarning, match="logits processors run on the host"):
        same = apar.generate(model, None, prompts, **options, logits_processor=lambda ids, scores: scores)
    assert same == expected


def test_a_model_that_cannot_be_captured_is_run_plainly() -> None:
    model = head_dim_64("qwen3", 2)
    prompts = random_prompts(3, seed=9)
    options = dict(grammar=forking_grammar(), max_new_tokens=MAX_NEW_TOKENS)
    expected = apar.generate(model, None, prompts, **options)

    def wait(module, given, out) -> None:
        out.sum().item()

    handle = model.model.norm.register_forward_hook(wait)
    with pytest.warns(UserWarning, match="without CUDA graphs"):
        assert apar.generate(model, None, prompts, **options) == expected
    handle.remove()
    assert apar.generate(model, None, prompts, **options) == expected
