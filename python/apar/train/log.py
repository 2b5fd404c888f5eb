"""The record of a run: a line of JSON for everything that is measured, and a picture of the losses."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from transformers import IntervalStrategy, TrainerCallback

from apar.files import check_output
from apar.pictures import can_draw, new_figure, save_png
from apar.train.saving import write_text_whole

LOG_FILE, PICTURE_FILE = "log.jsonl", "loss.png"
HELDOUT = "eval_"


class RunLog(TrainerCallback):
    """Writes ``log.jsonl`` and ``loss.png`` into a folder, and a line to stderr where there is no progress bar.

    A line has ``step`` and either what was learned (``loss``, ``grad_norm``, ``learning_rate``, ``tokens_per_second``
    of packed tokens, padding counted) or ``heldout``, the measures of an evaluation. A resumed run goes on with the
    lines up to its checkpoint.
    """

    def __init__(self, folder: Path, tokens_per_step: int, shown: bool) -> None:
        self._folder = folder
        self._tokens_per_step = tokens_per_step
        self._shown = shown
        self._lines: list[dict[str, Any]] = []
        self._is_written = False  # whether the file holds these lines and nothing else
        self._begin = 0  # steps behind the run when this process began
        self._since = (0, time.perf_counter())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        path = self._folder / LOG_FILE
        if state.global_step and path.exists():
            self._lines = [line for line in read_log(path) if line["step"] <= state.global_step]
        self._folder.mkdir(parents=True, exist_ok=True)
        check_output("output", str(path))
        self._begin = state.global_step
        self._since = (state.global_step, time.perf_counter())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        is_first = state.global_step == self._begin + 1
        if state.is_world_process_zero and is_first and not self._is_written:
            self._write()  # the log of a run that this one replaces is there until this one is known to work
        # A logged loss is the mean since the last line; a line at every checkpoint keeps a resumed curve the same.
        at_the_end = control.should_training_stop and args.logging_strategy != IntervalStrategy.NO
        if control.should_save or at_the_end:
            control.should_log = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        line: dict[str, Any] = {"step": state.global_step}
        if any(name.startswith(HELDOUT) for name in logs):
            line["heldout"] = {name.removeprefix(HELDOUT): v for name, v in logs.items() if name.startswith(HELDOUT)}
        elif "loss" in logs:
            step, since = self._since
            self._since = (state.global_step, time.perf_counter())
            line |= {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            seconds = self._since[1] - since
            line["tokens_per_second"] = round((state.global_step - step) * self._tokens_per_step / max(seconds, 1e-9))
        elif "save_error" in logs:
            line["save_error"] = logs["save_error"]
            print(f"apar: {line['save_error']}", file=sys.stderr)
        else:
            return
        self._add(line)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = (state.global_step, time.perf_counter())
        if state.is_world_process_zero:
            self.draw()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.draw()

    def draw(self) -> None:
        draw_losses(self._lines, self._folder / PICTURE_FILE)

    def _write(self) -> None:
        """What is not in the file yet: the last line, or all of them where the file is another run's or was cut."""
        path = self._folder / LOG_FILE
        try:
            if self._is_written:
                self._is_written = False
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(self._lines[-1]) + "\n")
            else:
                write_text_whole(path, "".join(json.dumps(line) + "\n" for line in self._lines))
            self._is_written = True
        except OSError as error:  # a full disk must not end a run that can go on
            print(f"apar: {LOG_FILE}: {error}", file=sys.stderr)

    def _add(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._write()
        if self._shown and "save_error" not in line:
            measures = line.get("heldout", line)
            shown = "  ".join(
                f"{name} {value:.4g}" for name, value in measures.items() if isinstance(value, float | int)
            )
            print(f"step {line['step']}  heldout  {shown}" if "heldout" in line else shown, file=sys.stderr)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last one that was cut off by an interruption is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines


def draw_losses(lines: list[dict[str, Any]], path: Path) -> bool:
    """Draw the loss curves of a log. Returns whether there is a picture: False without matplotlib or without losses."""
    learned = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if not learned or not can_draw():
        return False
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    axes.plot(*zip(*learned, strict=True), label="training", linewidth=1)
    for name in ("trunk_loss", "detail_loss"):
        points = [(line["step"], line["heldout"][name]) for line in lines if name in line.get("heldout", {})]
        if points:
            axes.plot(*zip(*points, strict=True), label=f"held out, {name.split('_')[0]}", marker="o", markersize=3)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per token (nats)")
    axes.set_yscale("log")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    try:
        save_png(figure, path)
    except OSError:
        return False
    return True
