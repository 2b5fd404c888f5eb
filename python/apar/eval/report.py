"""What an evaluation found: numbers per way of decoding and category, how the ways compare, a table and a picture."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from apar.data.synth.check import AnswerCheck, summarize
from apar.eval.prompts import EvalPrompt
from apar.pictures import new_figure, save_png

PARALLEL, SEQUENTIAL, BASE = "parallel", "sequential", "base"


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer and what it cost; see ``apar.output.Stats``.

    forks: of its tree. seconds: from prefill to its last token; decode_seconds: without prefill. pages_held: most KV
    pages at once. pages_read: KV pages that attention read in all steps, each once a step for all branches. complete:
    every branch ended by itself. check: against the right answer, if there is one.
    """

    text: str
    steps: int
    tokens: int
    forks: int
    seconds: float
    decode_seconds: float
    pages_held: int
    pages_read: float
    complete: bool
    check: AnswerCheck | None = None


@dataclasses.dataclass
class EvalReport:
    """prompts: those that were answered. answers: per way of decoding, in the order of the prompts. at_once: prompts
    decoded together; their time and the pages they read are shared out evenly. planned: prompts that were to be
    answered. left_out: prompts besides, longer than a model's positions.
    """

    prompts: list[EvalPrompt]
    answers: dict[str, list[Answer]]
    at_once: int = 1
    planned: int = 0
    left_out: int = 0

    def add(self, prompts: Sequence[EvalPrompt], answers: Mapping[str, Sequence[Answer]]) -> None:
        """prompts: and their answers, of every way of decoding."""
        for way, more in answers.items():
            self.answers[way] += more
        self.prompts += prompts

    @property
    def categories(self) -> list[str]:
        """Of the prompts, each once, sorted."""
        return sorted({prompt.category for prompt in self.prompts})

    def summary(self, way: str, category: str | None = None) -> dict[str, float | int]:
        """Of the answers of a way of decoding, or of one category of them:

        prompts, steps, tokens, seconds, decode_seconds, pages_read (sums), pages_held (mean), fork_rate (share that
        forks), forks (mean of those), complete (share). With right answers also what ``summarize`` of
        `apar.data.synth` finds: details_right, answers_right, forked_where_expected, forked_where_not (shares).
        """
        chosen = self._chosen(way, category)
        forked = [answer.forks for answer in chosen if answer.forks]
        found: dict[str, float | int] = {"prompts": len(chosen)}
        for name in ("steps", "tokens", "seconds", "decode_seconds", "pages_read"):
            found[name] = sum(getattr(answer, name) for answer in chosen)
        found["pages_held"] = _mean(answer.pages_held for answer in chosen)
        found["fork_rate"] = _mean(answer.forks > 0 for answer in chosen)
        found["forks"] = _mean(forked)
        found["complete"] = _mean(answer.complete for answer in chosen)
        checks = [answer.check for answer in chosen if answer.check is not None]
        return found | summarize(checks) if checks else found

    def agreement(self, way: str, other: str, category: str | None = None) -> dict[str, float]:
        """Of two ways: the share of equal texts, and the mean similarity of their words (0 to 1)."""
        pairs = [
            (one.text, two.text)
            for one, two in zip(self._chosen(way, category), self._chosen(other, category), strict=True)
        ]
        return {
            "same_text": _mean(one == two for one, two in pairs),
            "similarity": _mean(_similar(*pair) for pair in pairs),
        }

    def to_dict(self, *, texts: bool = False) -> dict[str, Any]:
        """Plain data. texts: with every answer and its numbers."""
        others = [way for way in self.answers if way != PARALLEL]
        found: dict[str, Any] = {
            "prompts": len(self.prompts),
            "planned": self.planned,
            "left_out": self.left_out,
            "at_once": self.at_once,
            "ways": {way: self._by_category(lambda name, way=way: self.summary(way, name)) for way in self.answers},
            "agreement": {
                f"{way} {PARALLEL}": self._by_category(lambda name, way=way: self.agreement(way, PARALLEL, name))
                for way in others
            },
            "ratios": {way: self._by_category(lambda name, way=way: self.ratios(way, name)) for way in others},
        }
        if texts:
            found["answers"] = [
                {
                    "messages": prompt.messages,
                    "category": prompt.category,
                    **{way: dataclasses.asdict(answers[number]) for way, answers in self.answers.items()},
                }
                for number, prompt in enumerate(self.prompts)
            ]
        return found

    def ratios(self, way: str, category: str | None = None) -> dict[str, float]:
        """What a way costs against the parallel one: steps, decode_seconds, seconds, pages_read, pages_held."""
        one, two = self.summary(way, category), self.summary(PARALLEL, category)
        names = ("steps", "decode_seconds", "seconds", "pages_read", "pages_held")
        return {name: one[name] / two[name] if two[name] else 1.0 for name in names}

    def _chosen(self, way: str, category: str | None) -> list[Answer]:
        return [
            answer
            for answer, prompt in zip(self.answers[way], self.prompts, strict=True)
            if category in (None, prompt.category)
        ]

    def _by_category(self, of: Callable[[str | None], dict[str, Any]]) -> dict[str, Any]:
        return {"all": of(None), "by_category": {name: of(name) for name in self.categories}}


_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("steps", "steps", lambda value: f"{value:,}"),
    ("tokens", "tokens", lambda value: f"{value:,}"),
    ("time", "seconds", lambda value: f"{value:.2f} s"),
    ("  without prefill", "decode_seconds", lambda value: f"{value:.2f} s"),
    ("KV pages read", "pages_read", lambda value: f"{value:,.0f}"),
    ("KV pages held at most", "pages_held", lambda value: f"{value:.1f}"),
    ("answers that fork", "fork_rate", lambda value: f"{value:.1%}"),
    ("forks of those", "forks", lambda value: f"{value:.1f}"),
    ("answers that end", "complete", lambda value: f"{value:.1%}"),
    ("answers exactly right", "answers_right", lambda value: f"{value:.1%}"),
    ("details exactly right", "details_right", lambda value: f"{value:.2%}"),
    ("forks where they should be", "forked_where_expected", lambda value: f"{value:.2%}"),
    ("forks where none should be", "forked_where_not", lambda value: f"{value:.2%}"),
)
_RIGHT = ("details_right", "answers_right")


def table(report: EvalReport) -> str:
    """The report for a terminal."""
    ways = list(report.answers)
    summaries = {way: report.summary(way) for way in ways}
    lines = [_title(report), "", " " * 28 + "".join(f"{way:>14}" for way in ways)]
    for label, name, show in _ROWS:
        if any(name in summary for summary in summaries.values()):
            cells = [show(summary[name]) if name in summary else "" for summary in summaries.values()]
            lines.append(f"{label:<28}" + "".join(f"{cell:>14}" for cell in cells))
    for way in ways[1:]:
        same, ratios = report.agreement(way, PARALLEL), report.ratios(way)
        lines += [
            "",
            f"{PARALLEL} against {way}: {ratios['steps']:.2f}x fewer steps, {ratios['seconds']:.2f}x faster, "
            f"{ratios['pages_read']:.2f}x fewer pages read;",
            f"{same['same_text']:.1%} of the texts are the same, words agree to {same['similarity']:.1%}",
        ]
    names = report.categories
    if len(names) > 1:
        width = max(12, *map(len, names)) + 2
        checked = any("answers_right" in summary for summary in summaries.values())
        lines += [
            "",
            f"{'category':<{width}}{'prompts':>8}{'fork':>7}{'steps':>8}{'time':>8}{'pages read':>12}"
            + f"{'details':>9}{'answers':>9}" * checked,
        ]
        for name in names:
            summary, ratios = report.summary(PARALLEL, name), report.ratios(SEQUENTIAL, name)
            right = [f"{summary[key]:>9.1%}" if key in summary else " " * 9 for key in _RIGHT] if checked else []
            lines.append(
                f"{name:<{width}}{summary['prompts']:>8}{summary['fork_rate']:>7.0%}{ratios['steps']:>7.2f}x"
                f"{ratios['seconds']:>7.2f}x{ratios['pages_read']:>11.2f}x{''.join(right)}"
            )
        lines.append(f"(fork rate of {PARALLEL}; ratios of {SEQUENTIAL} to it)")
    return "\n".join(lines)


def _title(report: EvalReport) -> str:
    title = f"{len(report.prompts)} prompts"
    if len(report.prompts) < report.planned:
        title += f" of {report.planned}"
    if report.left_out:
        title += f"; {report.left_out} left out, longer than the model's positions"
    return title


_BELOW = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.06), "ncols": 2}  # where a legend hides no bar


def draw(report: EvalReport, path: str) -> None:
    """A picture, a PNG file: per category how often answers fork, steps and time saved, KV pages; what is right, way by
    way.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    categories = [*report.categories, None] if len(report.categories) > 1 else [None]
    places, names = range(len(categories)), [category or "all" for category in categories]
    figure = new_figure(13, 3 + 0.5 * len(names))
    axes = figure.subplots(1, 4)
    axes[0].barh(places, [report.summary(PARALLEL, one)["fork_rate"] for one in categories], color="#4477aa")
    axes[0].set_yticks(list(places), names)
    axes[0].set(title="answers that fork", xlim=(0, 1))
    for axis, title, shown in (
        (axes[1], f"{SEQUENTIAL} / {PARALLEL}", (("steps", "steps"), ("time", "seconds"))),
        (axes[2], f"{SEQUENTIAL} / {PARALLEL}", (("KV pages read", "pages_read"), ("KV pages held", "pages_held"))),
    ):
        for number, (label, key) in enumerate(shown):
            values = [report.ratios(SEQUENTIAL, one)[key] for one in categories]
            axis.barh([place + 0.2 - 0.4 * number for place in places], values, 0.38, label=label)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(list(places), names)
        axis.set(title=title)
        axis.legend(**_BELOW)
    right = {way: report.summary(way) for way in report.answers}
    if all("details_right" in summary for summary in right.values()):
        for number, (label, key) in enumerate(zip(("details", "answers"), _RIGHT, strict=True)):
            axes[3].bar(
                [place + 0.4 * number for place in range(len(right))],
                [one[key] for one in right.values()],
                0.38,
                label=label,
            )
        axes[3].set_xticks([place + 0.2 for place in range(len(right))], list(right))
        axes[3].set(title="exactly right", ylim=(0, 1))
        axes[3].legend(**_BELOW)
    else:
        ways = [way for way in report.answers if way != PARALLEL]
        axes[3].bar(ways, [report.agreement(way, PARALLEL)["similarity"] for way in ways], color="#228833")
        axes[3].set(title=f"words that agree with {PARALLEL}", ylim=(0, 1))
    for axis in axes[:3]:
        axis.invert_yaxis()
    save_png(figure, path)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else 0.0


@functools.lru_cache(maxsize=1 << 16)  # a report is made again and again while it grows
def _similar(one: str, two: str) -> float:
    return 1.0 if one == two else difflib.SequenceMatcher(None, one.split(), two.split(), autojunk=False).ratio()
