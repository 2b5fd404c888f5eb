"""The paged KV cache that a transformers model writes to, and the step that says where and what its rows read.

A forward pass over a tree of branches is one packed row of tokens, ``input_ids [1, R]``. Where each row's keys and
values go and which entries it may read is a ``Step``, set on the cache before the pass:

    cache = PagedCache.for_model(model, num_pages=256)
    with cache.stepping(Step(slots, plan)):
        model(input_ids=tokens, position_ids=positions, past_key_values=cache, use_cache=True)

The step reaches the attention function through the cache's layers: ``update`` writes the rows and returns the layer
itself in place of keys and values. So it needs no argument that a model would have to pass on, several caches live side
by side, and any other attention implementation fails at once instead of reading pages as if they were a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

import apar_ext
from apar.page_sizes import DEFAULT_PAGE_SIZE, PAGE_SIZES

ATTENTION_NAME = "apar"
KV_DTYPES = {"fp8": torch.float8_e4m3fn}  # what a cache may hold besides the model's own dtype
# The length that a PagedCache reports: no length at all, by which the mask function knows that no mask is wanted.
# A plain number, since older torch.compile cannot trace a type of its own; impossible, so that any other use fails.
PAGED_LENGTH = -1


class UnsupportedModelError(ValueError):
    """The model's architecture cannot be decoded as a tree over a paged cache."""


@dataclass(frozen=True)
class Step:
    """What one forward pass over R rows writes and reads.

    Attributes:
        slots: [R] int32, device of the model: ``page * page_size + offset`` that row r's keys and values go to,
            -1 = nowhere.
        plan: the plan of the R rows for layers that see everything.
        window_plans: for every window size of the model (``PagedCache.windows``), the plan of the same rows with their
            ranges clipped to the last ``window`` positions, the row's own included.
    """

    slots: torch.Tensor
    plan: apar_ext.Plan
    window_plans: Mapping[int, apar_ext.Plan] = field(default_factory=dict)


class PagedCache(Cache):
    """KV pages of every layer of one model. It knows no branches: pages are handed out by whoever makes the steps.

    Each layer holds ``keys`` and ``values``, [num_pages, Hkv, page_size, D], allocated at the layer's first write from
    what it is given: dtype, device and, under tensor parallelism, the local number of KV heads. Pages are not cleared,
    an entry means something only after a step has written it.

    With ``kv_dtype="fp8"`` a layer keeps numbers of 8 bits (float8_e4m3fn), half the memory of 16-bit ones, and has
    ``k_scale`` and ``v_scale``: None, which is 1, or [Hkv] float32 tensors to be set before anything is written. Keys
    and values beyond 448 times the scale are cut off.

    Args:
        config: the model's configuration.
        num_pages: pages per layer; one page id means the same page in every layer.
        page_size: entries per page, a power of two from 8 to 128.
        kv_dtype: None, the dtype of the keys and values that are written, or ``"fp8"``.
        tensor_parallel_size: number of devices that the heads are spread over.

    Raises:
        UnsupportedModelError: the model keeps a state that is no list of keys and values (state-space and other linear
            layers), is an encoder-decoder, or attends in chunks.
        ValueError: num_pages, page_size or kv_dtype is not as above.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        num_pages: int,
        page_size: int = DEFAULT_PAGE_SIZE,
        *,
        kv_dtype: str | None = None,
        tensor_parallel_size: int = 1,
    ) -> None:
        if num_pages < 1:
            raise ValueError(f"PagedCache: num_pages is {num_pages}, expected at least 1")
        if page_size not in PAGE_SIZES:
            raise ValueError(f"PagedCache: page_size is {page_size}, expected one of {', '.join(map(str, PAGE_SIZES))}")
        check_kv_dtype(kv_dtype)
        layer_windows = attention_windows(config)
        self.config = config.get_text_config(decoder=True)
        self.num_pages = num_pages
        self.page_size = page_size
        num_heads = self.config.num_attention_heads
        num_kv_heads = getattr(self.config, "num_key_value_heads", None) or num_heads
        if num_kv_heads % tensor_parallel_size:
            raise ValueError(
                f"PagedCache: {num_kv_heads} KV heads cannot be spread over tensor_parallel_size {tensor_parallel_size}"
            )
        self.num_kv_heads = num_kv_heads // tensor_parallel_size
        self.group_size = num_heads // num_kv_heads
        self.windows = tuple(sorted({window for window in layer_windows if window is not None}))
        # Layers share this and not the cache itself: a cycle would keep the pages until the garbage collector runs.
        self._current = _CurrentStep()
        super().__init__(
            layers=[
                PagedLayer(self._current, num_pages, page_size, window, KV_DTYPES.get(kv_dtype))
                for window in layer_windows
            ]
        )
        self._is_sliding = [layer.is_sliding for layer in self.layers]
        self._all_false = [False] * len(self.layers)

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        num_pages: int,
        page_size: int = DEFAULT_PAGE_SIZE,
        *,
        kv_dtype: str | None = None,
    ) -> PagedCache:
        """A cache for ``model`` with ``attn_implementation="apar"``, tensor parallel or not."""
        tensor_parallel_size = getattr(model, "_tp_size", None) or 1
        return cls(model.config, num_pages, page_size, kv_dtype=kv_dtype, tensor_parallel_size=tensor_parallel_size)

    @property
    def step(self) -> Step | None:
        """The step of the next forward pass. Setting it checks that it fits this cache."""
        return self._current.step

    @step.setter
    def step(self, step: Step | None) -> None:
        if step is not None:
            rows = step.slots.shape[0]
            if step.plan.row_indptr.shape[0] != rows + 1:
                raise ValueError(
                    f"Step: slots has {rows} rows, expected {step.plan.row_indptr.shape[0] - 1} as in the plan"
                )
            for window in self.windows:
                if window not in step.window_plans:
                    raise ValueError(
                        f"Step: window_plans has sizes {list(step.window_plans)}, expected {list(self.windows)}"
                    )
        self._current.step = step

    @contextmanager
    def stepping(self, step: Step) -> Iterator[None]:
        """Set ``step`` for the forward passes inside, and take it away afterwards, come what may."""
        self.step = step
        try:
            yield
        finally:
            self._current.step = None

    def make_step(
        self,
        page_table: torch.Tensor,
        slots: torch.Tensor,
        row_position: torch.Tensor,
        row_indptr: torch.Tensor,
        range_stream: torch.Tensor,
        range_begin: torch.Tensor,
        range_end: torch.Tensor,
        first_position: torch.Tensor,
    ) -> Step:
        """A step from plain ranges, the plans for this model's windows included. All tensors int32.

        Args:
            page_table: [S, max_pages].
            slots: [R], see ``Step``.
            row_position: [R], position ids of the rows.
            row_indptr: [R + 1]; row r reads ranges row_indptr[r]:row_indptr[r + 1].
            range_stream, range_begin, range_end: [N]; entries [begin, end) of a stream.
            first_position: [S], position id of each stream's entry 0.
        """
        sizes = {"num_kv_heads": self.num_kv_heads, "group_size": self.group_size, "page_size": self.page_size}
        window_plans = {}
        for window in self.windows:
            clipped_begin = apar_ext.window_begins(
                row_indptr, row_position, range_stream, range_begin, range_end, first_position, window
            )
            window_plans[window] = apar_ext.make_plan(
                page_table, row_indptr, range_stream, clipped_begin, range_end, **sizes
            )
        plan = apar_ext.make_plan(page_table, row_indptr, range_stream, range_begin, range_end, **sizes)
        return Step(slots, plan, window_plans)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, keys and values of all layers that are allocated so far."""
        return sum(
            2 * layer.keys[0].numel() * layer.keys.element_size() for layer in self.layers if layer.is_initialized
        )

    # What transformers asks of a cache.

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[PagedLayer, PagedLayer]:
        """Write the step's rows to one layer. key_states, value_states: [B, Hkv, L, D] with B * L = R rows."""
        return self.layers[layer_idx].update(key_states, value_states)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        # Every model asks this while it prepares its mask, before the first layer: the place to notice that another
        # attention implementation would read the pages.
        implementation = self.config._attn_implementation
        if implementation != ATTENTION_NAME:
            raise ValueError(
                f"PagedCache: the model's attn_implementation is {implementation!r}, expected {ATTENTION_NAME!r} "
                f"(model.set_attn_implementation({ATTENTION_NAME!r}) after import apar)"
            )
        return PAGED_LENGTH, 0

    def get_query_offset(self, layer_idx: int = 0) -> int:
        return 0

    def get_seq_length(self, layer_idx: int = 0) -> NoReturn:
        _refuse_length()

    @property
    def is_sliding(self) -> list[bool]:
        return self._is_sliding

    @property
    def is_linear(self) -> list[bool]:
        return self._all_false

    @property
    def is_dummy(self) -> list[bool]:
        return self._all_false


class PagedLayer(CacheLayerMixin):
    """One layer's pages: ``keys``, ``values`` [num_pages, Hkv, page_size, D], and the plan to read them by."""

    supports_early_init = False

    def __init__(
        self,
        current: _CurrentStep,
        num_pages: int,
        page_size: int,
        window: int | None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._current = current
        self.num_pages = num_pages
        self.page_size = page_size
        self.window = window
        self.is_sliding = window is not None
        self.kv_dtype = kv_dtype  # None: that of the first keys
        self.k_scale: torch.Tensor | None = None
        self.v_scale: torch.Tensor | None = None

    @property
    def plan(self) -> apar_ext.Plan:
        """The current step's plan for this layer's window."""
        step = self._current.require()
        return step.plan if self.window is None else step.window_plans[self.window]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        if value_states.shape[-1] != key_states.shape[-1]:
            raise UnsupportedModelError(
                f"PagedCache: values have head_dim {value_states.shape[-1]}, "
                f"expected {key_states.shape[-1]} as the keys"
            )
        shape = (self.num_pages, key_states.shape[1], self.page_size, key_states.shape[3])
        self.dtype, self.device = self.kv_dtype or key_states.dtype, key_states.device
        # Tensors made under inference mode could not be written outside of it later.
        with torch.inference_mode(False):
            self.keys = torch.empty(shape, dtype=self.dtype, device=self.device)
            self.values = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[PagedLayer, PagedLayer]:
        slots = self._current.require().slots
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        _, num_kv_heads, _, head_dim = key_states.shape
        apar_ext.append_kv(
            key_states.transpose(1, 2).reshape(-1, num_kv_heads, head_dim),
            value_states.transpose(1, 2).reshape(-1, num_kv_heads, head_dim),
            self.keys,
            self.values,
            slots,
            k_scale=self.k_scale,
            v_scale=self.v_scale,
        )
        return self, self

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return PAGED_LENGTH, 0

    def get_max_length(self) -> int:
        return self.num_pages * self.page_size

    get_max_cache_shape = get_max_length  # its name before transformers 5.16

    def get_seq_length(self) -> NoReturn:
        _refuse_length()

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError("PagedCache: branches are opened and ended by page tables, not by changing the cache")

    crop = reorder_cache = batch_repeat_interleave = batch_select_indices = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"PagedLayer has no {name!r}. Models hand it to the attention function in place of key and value tensors; "
            "only attn_implementation='apar' can read it"
        )


def _refuse_length() -> NoReturn:
    raise ValueError("PagedCache: it has no one sequence length, since every row has its own; expected position_ids")


@dataclass
class _CurrentStep:
    step: Step | None = None

    def require(self) -> Step:
        if self.step is None:
            raise ValueError(
                "PagedCache: no step is set, expected `with cache.stepping(step):` around the forward pass"
            )
        return self.step


def check_kv_dtype(kv_dtype: str | None) -> None:
    if kv_dtype is not None and kv_dtype not in KV_DTYPES:
        raise ValueError(f"kv_dtype: expected None or one of {', '.join(map(repr, KV_DTYPES))}, got {kv_dtype!r}")


def attention_windows(config: PreTrainedConfig) -> list[int | None]:
    """Per layer the size of its sliding window in positions (the row's own counted), None where it sees everything.

    Raises:
        UnsupportedModelError: a layer is no causal attention over keys and values.
    """
    model_type = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{model_type}: encoder-decoder models are not supported, expected a decoder-only model"
        )
    config = config.get_text_config(decoder=True)
    if getattr(config, "num_attention_heads", None) is None or getattr(config, "num_hidden_layers", None) is None:
        raise UnsupportedModelError(
            f"{model_type}: the model has no attention heads, expected attention in every layer"
        )
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        raise UnsupportedModelError(f"{model_type}: the model attends in both directions, expected causal attention")
    layer_configs = getattr(config, "per_layer_config", None) or [config] * config.num_hidden_layers
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        layer_types = [_layer_type(layer_config) for layer_config in layer_configs]
    windows: list[int | None] = []
    for layer_type, layer_config in zip(layer_types, layer_configs, strict=True):
        if layer_type == "full_attention":
            windows.append(None)
        elif layer_type == "sliding_attention":
            windows.append(layer_config.sliding_window)
        else:
            raise UnsupportedModelError(
                f"{model_type}: a layer is of type {layer_type!r}, expected 'full_attention' or 'sliding_attention'"
            )
    return windows


def _layer_type(config: PreTrainedConfig) -> str:
    """The type of a layer whose configuration does not name it, found as transformers' own caches find it."""
    if getattr(config, "sliding_window", None) is not None:
        return "sliding_attention"
    if getattr(config, "attention_chunk_size", None) is not None:
        return "chunked_attention"
    return "full_attention"
