"""`apar data stats`: what a file of trees holds, and what its forks could save."""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from apar.data.records import TreeRecord
from apar.data.shape import TreeShape, estimate_tokens, tree_shape
from apar.pictures import new_figure, save_png

ALL = "all"
_OF_A_TREE = ("tokens", "steps", "forks", "width", "depth", "speedup")


@dataclasses.dataclass
class Summary:
    """Numbers of one source of trees.

    records: all; heldout, forked: of them. tokens: of all answers. children (details of a tree at all levels), width
    (branches at once, at most) and detail_tokens are mean, median and 90 % quantile over the trees that fork, or over
    their details. depth: trees by levels of branches. Speed-ups are of ideal steps: tokens over steps until the last
    branch ends, if all branches are written at once and control tokens cost nothing; over all records, where an answer
    without a fork counts 1, over those that fork, and tokens of all answers over steps of all.
    """

    records: int
    heldout: int
    forked: int
    tokens: int
    children: dict[str, float]
    width: dict[str, float]
    detail_tokens: dict[str, float]
    depth: dict[int, int]
    speedup: dict[str, float]
    speedup_of_forked: dict[str, float]
    speedup_by_tokens: float

    @property
    def forked_share(self) -> float:
        return self.forked / self.records if self.records else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "forked_share": self.forked_share}


class Shapes:
    """The shapes of one source's trees, as they were read: columns of numbers, some 50 bytes a tree.

    tokens, steps, forks, width, depth, speedup: one value a tree. details: tokens of all details, in a row.
    """

    def __init__(self) -> None:
        self.heldout = 0
        self._columns = {name: array.array("d" if name == "speedup" else "q") for name in (*_OF_A_TREE, "details")}

    def add(self, shape: TreeShape, is_heldout: bool) -> None:
        for name in _OF_A_TREE:
            self._columns[name].append(getattr(shape, name))
        self._columns["details"].extend(shape.details)
        self.heldout += is_heldout

    def column(self, name: str) -> np.ndarray:
        """int64 [trees], or [details]; float64 for speedup."""
        return np.array(self._columns[name])

    def summary(self) -> Summary:
        forked = self.column("forks") > 0
        tokens, steps = (int(self.column(name).sum()) for name in ("tokens", "steps"))
        return Summary(
            records=len(forked),
            heldout=self.heldout,
            forked=int(forked.sum()),
            tokens=tokens,
            children=_spread(self.column("forks")[forked]),
            width=_spread(self.column("width")[forked]),
            detail_tokens=_spread(self.column("details")),
            depth={depth: int(count) for depth, count in enumerate(np.bincount(self.column("depth"))) if count},
            speedup=_spread(self.column("speedup")),
            speedup_of_forked=_spread(self.column("speedup")[forked]),
            speedup_by_tokens=tokens / steps if steps else 1.0,
        )


def measure(
    records: Iterable[TreeRecord], *, by: str = "source", count_tokens: Callable[[str], int] = estimate_tokens
) -> dict[str, Shapes]:
    """The shapes of trees per source and, under "all", of all together.

    by: "source", "split", or the name of an extra value of the records ("model").
    count_tokens: tokens of a piece of text; an estimate by default.
    """
    found: dict[str, Shapes] = {}
    everything = Shapes()
    for record in records:
        shape = tree_shape(record.tree, count_tokens)
        for shapes in (found.setdefault(record.value(by) or "", Shapes()), everything):
            shapes.add(shape, record.split == "heldout")
    if len(found) != 1:
        if ALL in found:
            found[f"{ALL} ({by})"] = found.pop(ALL)
        found = dict(sorted(found.items()))
        found[ALL] = everything
    return found


def table(summaries: dict[str, Summary]) -> str:
    """The summaries for a terminal, a line each; mean / median / 90 % quantile where there are three numbers."""
    heads = ["", "records", "forked", "children", "width", "detail tokens", "speed-up", "of forked", "by tokens"]
    rows = [
        [
            name,
            f"{one.records:,}",
            f"{one.forked_share:.0%}",
            _three(one.children, 1),
            _three(one.width, 1),
            _three(one.detail_tokens, 0),
            _three(one.speedup, 2),
            _three(one.speedup_of_forked, 2),
            f"{one.speedup_by_tokens:.2f}",
        ]
        for name, one in summaries.items()
    ]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    lines = [
        "  ".join(cell.ljust(width) if column == 0 else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in [heads, *rows])
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", "mean / median / 90 % quantile; speed-up: ideal steps"])


def draw(shapes: dict[str, Shapes], summaries: dict[str, Summary], path: str) -> None:
    """Distributions as a picture: forked share and speed-up per source; children, width, details, speed-up of all.

    shapes, summaries: by the same names. Raises RuntimeError where matplotlib is not installed.
    """
    everything = shapes.get(ALL) or next(iter(shapes.values()), Shapes())
    forked = everything.column("forks") > 0
    figure = new_figure(13, 7)
    axes = figure.subplots(2, 3).ravel()
    names = list(summaries)
    axes[0].barh(names, [one.forked_share for one in summaries.values()], color="#4477aa")
    axes[0].set(title="answers that fork", xlim=(0, 1))
    axes[1].barh(names, [one.speedup["mean"] for one in summaries.values()], color="#4477aa")
    axes[1].set(title="ideal speed-up, mean of all answers")
    for axis in axes[:2]:
        axis.invert_yaxis()
    for axis, title, values in (
        (axes[2], "ideal speed-up of answers that fork", everything.column("speedup")[forked]),
        (axes[3], "details of an answer", everything.column("forks")[forked]),
        (axes[4], "branches at once", everything.column("width")[forked]),
        (axes[5], "tokens of a detail", everything.column("details")),
    ):
        if len(values):
            most = float(np.quantile(values, 0.99))
            whole = values.dtype.kind == "i" and most < 60
            bins = np.arange(0.5, most + 1.5) if whole else 40
            axis.hist(np.minimum(values, most), bins=bins, color="#228833")
        axis.set(title=title)
        axis.set_ylabel("count")
    save_png(figure, path)


def tokenizer_counter(path: str) -> Callable[[str], int]:
    """Counts tokens with the tokenizer of a folder or hub id, special tokens left out."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # transformers raises many types here
        raise ValueError(f"tokenizer: none found at {path!r} ({error})") from error

    def count(text: str) -> int:
        # What cannot be encoded, half of a surrogate pair, counts as a question mark.
        return len(tokenizer(text.encode(errors="replace").decode(), add_special_tokens=False)["input_ids"])

    return count


def _spread(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {"mean": 0.0, "median": 0.0, "p90": 0.0}
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "p90": float(np.quantile(values, 0.9)),
    }


def _three(spread: dict[str, float], digits: int) -> str:
    return " / ".join(f"{spread[name]:.{digits}f}" for name in ("mean", "median", "p90"))
