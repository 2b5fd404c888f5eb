"""Running the parts of a step: captured in CUDA graphs where there is a GPU, as plain calls everywhere else."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol

import torch


class Graphs(Protocol):
    """Runs functions of no arguments that read and write tensors at fixed addresses."""

    num_captures: int
    num_replays: int

    def run(self, key: Hashable, function: Callable[[], Any]) -> Any:
        """Run ``function``, or what was captured of it under ``key``, and return its result.

        Under one key it is always the same function. The tensors of a result are overwritten by later runs.
        """

    def working(self) -> contextlib.AbstractContextManager[None]:
        """Everything of a run happens in here: on a GPU, on one stream."""

    def wait(self) -> None:
        """Until all that was launched is done."""


class EagerGraphs:
    """Calls the functions."""

    def __init__(self) -> None:
        self.num_captures = self.num_replays = 0

    def run(self, key: Hashable, function: Callable[[], Any]) -> Any:
        return function()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        yield

    def wait(self) -> None:
        pass


class CudaGraphs:
    """Captures a function the second time it is run, and replays it from then on.

    The first run is a plain one: it loads kernels and makes what is made once (workspaces, the pages of a cache), and
    it is all that a rare key costs. All graphs share one memory pool: they run one after the other on one stream.

    A function that cannot be captured ends capturing for good, with a warning, and goes on being called: data-dependent
    control flow, copies from the host, offloaded weights.
    """

    def __init__(self, device: torch.device, *, capture: bool = True) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.num_captures = self.num_replays = 0
        self._capture = capture
        self._pool: Any = None
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, Any]] = {}

    def run(self, key: Hashable, function: Callable[[], Any]) -> Any:
        if not self._capture:
            return function()
        if key not in self._graphs:
            if key not in self._seen:
                self._seen.add(key)
                return function()
            try:
                self._graphs[key] = self._captured(function)
            except Exception as error:
                self._capture = False
                warnings.warn(
                    f"apar: this model's steps run without CUDA graphs, which is slower: {_first_line(error)}",
                    stacklevel=2,
                )
                return function()
        graph, result = self._graphs[key]
        graph.replay()
        self.num_replays += 1
        return result

    def _captured(self, function: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, Any]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        self.stream.synchronize()
        # Other threads may do with CUDA what they like meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            result = function()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the capture is void, and says so once more
                graph.capture_end()
            raise
        graph.capture_end()
        self.num_captures += 1
        return graph, result

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        with torch.cuda.device(self.device):
            # Weights may just have been written on the caller's stream.
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                yield

    def wait(self) -> None:
        self.stream.synchronize()


class Stopwatch:
    """``with Stopwatch(device) as watch: ...``; ``watch.seconds()`` once what was launched inside is done."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"

    def __enter__(self) -> Stopwatch:
        self._begin = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._end = self._now()

    def seconds(self) -> float:
        return 1e-3 * self._begin.elapsed_time(self._end) if self._is_cuda else self._end - self._begin

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def make_graphs(model: Any) -> Graphs:
    """What suits the model: graphs on a GPU that holds all of it, plain calls elsewhere."""
    if model.device.type != "cuda":
        return EagerGraphs()
    places = {str(place) for place in (getattr(model, "hf_device_map", None) or {}).values()}
    if len(places) > 1:
        warnings.warn(
            f"apar: the model is spread over {', '.join(sorted(places))}, so its steps run without CUDA graphs",
            stacklevel=2,
        )
    return CudaGraphs(model.device, capture=len(places) <= 1)


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
