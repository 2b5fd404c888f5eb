"""What others offer for the same rows: FlashInfer (paged decode, cascade), FlexAttention, SDPA on gathered KV.

Each gets shared pages where it can use them. A baseline that is not installed, does not run, or computes something else
is left out by name, with the reason; never silently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from bench.gpu import Card
from bench.gpu_problem import PAGE_SIZE, Problem

Call = Callable[[], torch.Tensor]  # gives [R, Hq, D]

# SDPA on gathered KV and FlexAttention need dense copies: only up to here.
DENSE_BYTES = 16 << 30


@dataclass(frozen=True)
class Baseline:
    name: str
    make: Callable[[Problem], Call]


def measure_baselines(
    card: Card, problem: Problem, names: tuple[str, ...], notes: dict[str, str], *, cold: bool
) -> dict[str, float]:
    """Microseconds by name. What does not run goes to ``notes``: name -> reason."""
    times = {}
    for baseline in BASELINES:
        if baseline.name not in names or baseline.name in notes:
            continue
        try:
            call = baseline.make(problem)
            problem.check(call(), name=baseline.name)
            times[baseline.name] = card.median_us([call], cold=cold)
        except ImportError as missing:
            notes[baseline.name] = f"not installed: {missing}"
        except Exception as failure:  # whatever a peer throws is its reason
            reason = (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]
            print(f"    {baseline.name}: {reason}", flush=True)
            notes.setdefault(f"{baseline.name} (some shapes)", reason)
    return times


# ---- FlashInfer ----


@dataclass
class FlatPages:
    """Rows as lists of whole pages, which is what paged decoding without ranges needs.

    A page is shared by all rows whose context has the same entries there; a row whose ranges do not meet at page
    borders has copies of its own from there on, as engines that share prefixes by pages have.
    """

    k_cache: torch.Tensor
    v_cache: torch.Tensor
    row_pages: list[list[int]]
    last_page_entries: list[int]


def flat_pages(problem: Problem) -> FlatPages:
    number_of: dict[tuple, int] = {}
    row_pages, last = [], []
    for row in problem.rows:
        pages = [number_of.setdefault(key, len(number_of)) for key in _page_keys(row)]
        row_pages.append(pages)
        entries = sum(end - begin for _, begin, end in row)
        last.append((entries - 1) % PAGE_SIZE + 1)
    # Where each page's entries come from; what is left of a last page is never read.
    pieces = [(page, stream, begin, end - begin) for key, page in number_of.items() for stream, begin, end in key]
    page, stream, begin, length = torch.tensor(pieces).T
    starts = length.cumsum(0) - length
    within = torch.arange(int(length.sum())) - starts.repeat_interleave(length)
    page, stream, entry = (x.repeat_interleave(length) for x in (page, stream, begin))
    entry = entry + within
    first_of_page = torch.cat([torch.tensor([True]), page[1:] != page[:-1]]).nonzero().flatten()
    offset = torch.arange(len(page)) - first_of_page[page]
    sources = torch.zeros(len(number_of), PAGE_SIZE, 2, dtype=torch.int64)
    sources[page, offset, 0] = problem.page_table.cpu()[stream, entry // PAGE_SIZE].long()
    sources[page, offset, 1] = entry % PAGE_SIZE
    sources = sources.to(problem.q.device)
    k_cache, v_cache = (
        cache[sources[..., 0], :, sources[..., 1]].transpose(1, 2).contiguous() for cache in problem.layers[0]
    )
    return FlatPages(k_cache, v_cache, row_pages, last)


def _page_keys(row: list[tuple[int, int, int]]) -> Iterator[tuple[tuple[int, int, int], ...]]:
    """The entries of each page of a row, as ranges."""
    key: list[tuple[int, int, int]] = []
    room = PAGE_SIZE
    for stream, begin, end in row:
        while begin < end:
            stop = min(end, begin + room)
            key.append((stream, begin, stop))
            room -= stop - begin
            begin = stop
            if room == 0:
                yield tuple(key)
                key, room = [], PAGE_SIZE
    if key:
        yield tuple(key)


def _workspace(problem: Problem) -> torch.Tensor:
    return torch.empty(384 << 20, dtype=torch.uint8, device=problem.q.device)


def flashinfer_paged(problem: Problem) -> Call:
    import flashinfer

    flat = flat_pages(problem)
    indptr, indices, last = _page_lists(flat.row_pages, flat.last_page_entries, problem.q.device)
    num_heads, num_kv_heads = problem.heads
    rows = problem.q.shape[0]
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        _workspace(problem),
        "HND",
        use_cuda_graph=True,
        use_tensor_cores=num_heads // num_kv_heads >= 4,
        paged_kv_indptr_buffer=torch.empty(rows + 1, dtype=torch.int32, device=problem.q.device),
        paged_kv_indices_buffer=torch.empty(len(indices), dtype=torch.int32, device=problem.q.device),
        paged_kv_last_page_len_buffer=torch.empty(rows, dtype=torch.int32, device=problem.q.device),
    )
    wrapper.plan(
        indptr,
        indices,
        last,
        num_heads,
        num_kv_heads,
        problem.q.shape[2],
        PAGE_SIZE,
        q_data_type=problem.q.dtype,
        kv_data_type=flat.k_cache.dtype,
    )
    return lambda: wrapper.run(problem.q, (flat.k_cache, flat.v_cache))


def flashinfer_cascade(problem: Problem) -> Call:
    """A level per place in the rows' lists of ranges; neighbours with the same range there share its pages."""
    import flashinfer

    levels = cascade_levels(problem)
    device = problem.q.device
    num_heads, num_kv_heads = problem.heads
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(levels), _workspace(problem), "HND")
    lists = [_page_lists(level.pages, level.last_page_entries, device) for level in levels]
    wrapper.plan(
        [torch.tensor(level.row_bounds, dtype=torch.int32, device=device) for level in levels],
        [indptr for indptr, _, _ in lists],
        [indices for _, indices, _ in lists],
        [last for _, _, last in lists],
        num_heads,
        num_kv_heads,
        problem.q.shape[2],
        PAGE_SIZE,
        causal=False,
        q_data_type=problem.q.dtype,
    )
    return lambda: wrapper.run(problem.q, problem.layers[0])


@dataclass
class CascadeLevel:
    row_bounds: list[int]  # groups of neighbouring rows
    pages: list[list[int]]  # of each group
    last_page_entries: list[int]


def cascade_levels(problem: Problem) -> list[CascadeLevel]:
    """Raises ValueError where rows have lists of different lengths, which a cascade has no form for."""
    depths = {len(row) for row in problem.rows}
    if len(depths) != 1:
        raise ValueError(f"rows have {min(depths)} to {max(depths)} ranges, a cascade needs as many in each")
    table = problem.page_table.cpu().tolist()
    levels = []
    for place in range(depths.pop()):
        level = CascadeLevel([0], [], [])
        previous = None
        for number, row in enumerate(problem.rows):
            stream, begin, end = row[place]
            if begin != 0 or end == 0:
                raise ValueError("a range begins inside of a stream or is empty, a cascade needs whole page lists")
            if (stream, end) != previous:
                if number:
                    level.row_bounds.append(number)
                level.pages.append(table[stream][: -(-end // PAGE_SIZE)])
                level.last_page_entries.append((end - 1) % PAGE_SIZE + 1)
                previous = (stream, end)
        level.row_bounds.append(len(problem.rows))
        levels.append(level)
    return levels


def _page_lists(
    pages: list[list[int]], last: list[int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    indptr = torch.tensor([0] + [len(one) for one in pages]).cumsum(0).int()
    indices = torch.tensor([page for one in pages for page in one], dtype=torch.int32)
    return indptr.to(device), indices.to(device), torch.tensor(last, dtype=torch.int32, device=device)


# ---- torch ----


def sdpa_on_gathered(problem: Problem) -> Call:
    """Every row with a dense copy of what it reads."""
    lengths = [sum(end - begin for _, begin, end in row) for row in problem.rows]
    k_cache = problem.layers[0][0]
    size = 2 * len(lengths) * max(lengths) * k_cache.shape[1] * k_cache.shape[3] * k_cache.element_size()
    if size > DENSE_BYTES:
        raise ValueError(f"the gathered KV would have {size / 2**30:.0f} GB")
    shape = (len(lengths), k_cache.shape[1], max(lengths), k_cache.shape[3])
    k, v = (torch.zeros(shape, dtype=problem.q.dtype, device=k_cache.device) for _ in range(2))
    for row, length in enumerate(lengths):
        k[row, :, :length], v[row, :, :length] = problem.gather(row)
    mask = None
    if min(lengths) != max(lengths):
        ends = torch.tensor(lengths, device=k.device)
        mask = (torch.arange(max(lengths), device=k.device) < ends[:, None])[:, None, None]
    q = problem.q[:, :, None]
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, k, v, attn_mask=mask, enable_gqa=True)[:, :, 0]


def flex_attention(problem: Problem) -> Call:
    """Compiled, over all streams end to end, each entry once, with a block mask."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as attend

    device = problem.q.device
    lengths: dict[int, int] = {}
    for row in problem.rows:
        for stream, _, end in row:
            lengths[stream] = max(lengths.get(stream, 0), end)
    streams = sorted(lengths)
    everything = [(stream, 0, lengths[stream]) for stream in streams]
    whole = Problem([everything], problem.q[:1], problem.layers, problem.page_table, problem.plan)
    k, v = (x[None].contiguous() for x in whole.gather(0))
    stream_of = torch.cat([torch.full((lengths[s],), i, device=device) for i, s in enumerate(streams)])
    index_of = torch.cat([torch.arange(lengths[s], device=device) for s in streams])
    seen = torch.zeros(len(problem.rows), len(streams), dtype=torch.int64, device=device)
    place = {stream: i for i, stream in enumerate(streams)}
    for number, row in enumerate(problem.rows):
        for stream, _, end in row:
            seen[number, place[stream]] = end

    def visible(batch, head, query, entry):
        return index_of[entry] < seen[query, stream_of[entry]]

    mask = create_block_mask(visible, None, None, len(problem.rows), k.shape[2], device=str(device))
    q = problem.q.transpose(0, 1)[None].contiguous()
    torch.compiler.reset()  # after some shapes it would stop compiling
    compiled = torch.compile(attend, dynamic=False)
    scale = 1 / math.sqrt(q.shape[3])
    return lambda: compiled(q, k, v, block_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)


BASELINES = (
    Baseline("FlashInfer paged decode", flashinfer_paged),
    Baseline("FlashInfer cascade", flashinfer_cascade),
    Baseline("FlexAttention", flex_attention),
    Baseline("SDPA on gathered KV", sdpa_on_gathered),
)
FLASHINFER = ("FlashInfer paged decode", "FlashInfer cascade")
ALL = tuple(baseline.name for baseline in BASELINES)
