"""When CudaGraphs captures, replays and gives up, with stand-ins for what needs a card."""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

import pytest
import torch
from apar.captured import CudaGraphs, EagerGraphs, make_graphs


class FakeGraph:
    """Notes what happens to it; ``log`` is shared by all."""

    log: list[Any]

    def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
        FakeGraph.log.append(("begin", pool))

    def capture_end(self) -> None:
        FakeGraph.log.append("end")
        if FakeGraph.log[-2] == "void":
            raise RuntimeError("capture is void")

    def replay(self) -> None:
        FakeGraph.log.append("replay")


class FakeStream:
    def __init__(self, device: Any) -> None:
        pass

    def synchronize(self) -> None:
        FakeGraph.log.append("wait")

    def wait_stream(self, other: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def no_card(monkeypatch) -> None:
    FakeGraph.log = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")


class Counted:
    def __init__(self, *, fails_on: int = 0, error: type[BaseException] = RuntimeError) -> None:
        self.calls, self.fails_on, self.error = 0, fails_on, error

    def __call__(self) -> int:
        self.calls += 1
        if self.calls == self.fails_on:
            FakeGraph.log.append("void")
            raise self.error("operation not permitted when stream is capturing\nmore lines")
        return self.calls


def test_runs_then_captures_then_replays() -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    first, second = Counted(), Counted()
    assert graphs.run("a", first) == 1
    assert FakeGraph.log == []
    assert graphs.run("b", second) == 1
    for _ in range(3):
        assert graphs.run("a", first) == 2
    assert FakeGraph.log == ["wait", ("begin", "pool"), "end", "replay", "replay", "replay"]
    assert (first.calls, second.calls) == (2, 1)
    assert (graphs.num_captures, graphs.num_replays) == (1, 3)


def test_gives_up_with_one_warning_and_goes_on() -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    good, bad = Counted(), Counted(fails_on=2)
    for _ in range(2):
        graphs.run("good", good)
    graphs.run("bad", bad)
    with pytest.warns(UserWarning, match="without CUDA graphs.*not permitted when stream is capturing$"):
        assert graphs.run("bad", bad) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert graphs.run("bad", bad) == 4
        assert graphs.run("good", good) == 3
    assert FakeGraph.log.count("replay") == 1


def test_an_interruption_while_capturing_passes_through() -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    function = Counted(fails_on=2, error=KeyboardInterrupt)
    graphs.run("a", function)
    with pytest.raises(KeyboardInterrupt):
        graphs.run("a", function)
    assert FakeGraph.log[-1] == "end", "the capture must be over"
    assert graphs.run("a", function) == 3


def test_an_error_of_a_plain_run_is_the_callers() -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.run("a", Counted(fails_on=1))


class Placed:
    def __init__(self, device: str, places: dict[str, Any] | None = None) -> None:
        self.device = torch.device(device)
        if places is not None:
            self.hf_device_map = places


def test_what_suits_the_model() -> None:
    assert isinstance(make_graphs(Placed("cpu")), EagerGraphs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphs = make_graphs(Placed("cuda", {"": 0}))
        assert isinstance(graphs, CudaGraphs)
    with pytest.warns(UserWarning, match="spread over 0, cpu"):
        graphs = make_graphs(Placed("cuda", {"a": 0, "b": "cpu"}))
    function = Counted()
    for _ in range(4):
        graphs.run("a", function)
    assert function.calls == 4
    assert FakeGraph.log == []


def test_eager_graphs_call() -> None:
    graphs, function = EagerGraphs(), Counted()
    with graphs.working(), contextlib.nullcontext():
        assert [graphs.run("a", function) for _ in range(3)] == [1, 2, 3]
    graphs.wait()
