"""A progress bar for long work, silent when nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType

from tqdm import tqdm


class progress_bar:
    """``with progress_bar(total, "prompts") as bar: bar.update_to(3)``. shown: None = if stderr is a terminal."""

    def __init__(self, total: int, unit: str, shown: bool | None = None) -> None:
        if shown is None:
            shown = total > 1 and sys.stderr.isatty()
        self._bar = tqdm(total=total, unit=f" {unit}", disable=not shown, leave=False)

    def update_to(self, done: int) -> None:
        if done != self._bar.n:
            self._bar.update(done - self._bar.n)

    def __enter__(self) -> progress_bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
