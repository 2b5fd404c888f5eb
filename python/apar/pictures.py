"""Pictures without a display. They need matplotlib, which the extra ``apar[data]`` installs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apar.files import check_output, written_whole

MISSING = "a picture needs the package matplotlib: pip install 'apar[data]'"


def can_draw() -> bool:
    """Whether matplotlib is installed; it is not imported for that."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Any:
    """An empty ``matplotlib.figure.Figure``, sides in inches.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    if not can_draw():
        raise RuntimeError(MISSING)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_png(figure: Any, path: str | Path) -> None:
    """Write a figure to a file, whole or not at all. Errors are those of ``written_whole``."""
    with written_whole(path) as file:
        figure.savefig(file, dpi=120, format="png")


def check_picture(option: str, path: str | None, others: Iterable[str | None] = ()) -> None:
    """`check_output` for a picture: also raises ValueError where nothing can be drawn."""
    check_output(option, path, others)
    if path is not None and not can_draw():
        raise ValueError(f"{option}: {MISSING}")
