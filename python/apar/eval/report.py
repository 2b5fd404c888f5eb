"""What an evaluation found: numbers per way of decoding and category, how the ways compare, a table and a picture."""

from __future__ import annotations

import dataclasses
import difflib
import statistics
from collections.abc import Callable, Iterable
from typing import Any

from apar.data.synth.check import AnswerCheck

PARALLEL, SEQUENTIAL, BASE = "parallel", "sequential", "base"
ALL = "all"


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
    """categories: of the prompts, in order. answers: per way of decoding, in order. at_once: prompts decoded together;
    times of a prompt are those of its whole group then.
    """

    categories: list[str]
    answers: dict[str, list[Answer]]
    at_once: int = 1

    def summary(self, way: str, category: str = ALL) -> dict[str, float | int]:
        """Of the answers of a way of decoding, or of one category of them:

        prompts, steps, tokens, seconds, decode_seconds, pages_read (sums), pages_held (mean), fork_rate (share that
        forks), forks (mean of those), complete (share). With right answers, as shares: exact (whole answers), details,
        fork_recall (of the forks of the right answers), extra_forks (per answer), forked_wrongly (of the answers that
        must not fork).
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
        if checks:
            expected = sum(check.expected_forks for check in checks)
            single = [check for check in checks if not check.expected_forks]
            found["exact"] = _mean(check.exact for check in checks)
            found["details"] = sum(check.num_right for check in checks) / sum(len(check.details) for check in checks)
            if expected:
                found["fork_recall"] = sum(check.forks for check in checks) / expected
            found["extra_forks"] = _mean(check.extra_forks for check in checks)
            if single:
                found["forked_wrongly"] = _mean(check.extra_forks > 0 for check in single)
        return found

    def agreement(self, way: str, other: str, category: str = ALL) -> dict[str, float]:
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
        names = [ALL, *sorted(set(self.categories))]
        found: dict[str, Any] = {
            "prompts": len(self.categories),
            "at_once": self.at_once,
            "ways": {way: {name: self.summary(way, name) for name in names} for way in self.answers},
            "agreement": {
                f"{way} {PARALLEL}": {name: self.agreement(way, PARALLEL, name) for name in names}
                for way in self.answers
                if way != PARALLEL
            },
            "ratios": {
                way: {name: self.ratios(way, name) for name in names} for way in self.answers if way != PARALLEL
            },
        }
        if texts:
            found["answers"] = {
                way: [
                    {**dataclasses.asdict(answer), "category": category}
                    for answer, category in zip(answers, self.categories, strict=True)
                ]
                for way, answers in self.answers.items()
            }
        return found

    def ratios(self, way: str, category: str = ALL) -> dict[str, float]:
        """What a way costs against the parallel one: steps, decode_seconds, seconds, pages_read, pages_held."""
        one, two = self.summary(way, category), self.summary(PARALLEL, category)
        names = ("steps", "decode_seconds", "seconds", "pages_read", "pages_held")
        return {name: one[name] / two[name] if two[name] else 1.0 for name in names}

    def _chosen(self, way: str, category: str) -> list[Answer]:
        return [
            answer for answer, name in zip(self.answers[way], self.categories, strict=True) if category in (ALL, name)
        ]


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
    ("answers exactly right", "exact", lambda value: f"{value:.1%}"),
    ("details exactly right", "details", lambda value: f"{value:.2%}"),
    ("forks where they should be", "fork_recall", lambda value: f"{value:.2%}"),
    ("forks where none should be", "forked_wrongly", lambda value: f"{value:.2%}"),
)


def table(report: EvalReport) -> str:
    """The report for a terminal."""
    ways = list(report.answers)
    summaries = {way: report.summary(way) for way in ways}
    lines = [f"{len(report.categories)} prompts", "", " " * 28 + "".join(f"{way:>14}" for way in ways)]
    for label, name, show in _ROWS:
        if any(name in summary for summary in summaries.values()):
            cells = [show(summary[name]) if name in summary else "" for summary in summaries.values()]
            lines.append(f"{label:<28}" + "".join(f"{cell:>14}" for cell in cells))
    for way in ways[1:]:
        same, ratios = report.agreement(way, PARALLEL), report.ratios(way)
        lines += [
            "",
            f"{PARALLEL} against {way}: {ratios['steps']:.2f}x fewer steps, {ratios['decode_seconds']:.2f}x faster, "
            f"{ratios['pages_read']:.2f}x fewer pages read;",
            f"{same['same_text']:.1%} of the texts are the same, words agree to {same['similarity']:.1%}",
        ]
    names = sorted(set(report.categories))
    if len(names) > 1:
        width = max(12, *map(len, names)) + 2
        lines += [
            "",
            f"{'category':<{width}}{'prompts':>8}{'fork':>7}{'steps':>8}{'time':>8}{'pages read':>12}{'details':>9}",
        ]
        for name in names:
            summary, ratios = report.summary(PARALLEL, name), report.ratios(SEQUENTIAL, name)
            right = f"{summary['details']:.1%}" if "details" in summary else ""
            lines.append(
                f"{name:<{width}}{summary['prompts']:>8}{summary['fork_rate']:>7.0%}{ratios['steps']:>7.2f}x"
                f"{ratios['decode_seconds']:>7.2f}x{ratios['pages_read']:>11.2f}x{right:>9}"
            )
        lines.append(f"(fork rate of {PARALLEL}; ratios of {SEQUENTIAL} to it)")
    return "\n".join(lines)


def draw(report: EvalReport, path: str) -> None:
    """A picture: per category how often answers fork, steps and time saved, KV pages; what is right, way by way.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError("a picture needs the package matplotlib: pip install 'apar[data]'") from error
    names = [*sorted(set(report.categories)), ALL] if len(set(report.categories)) > 1 else [ALL]
    figure = Figure(figsize=(13, 3 + 0.5 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 4)
    places = range(len(names))
    axes[0].barh(names, [report.summary(PARALLEL, name)["fork_rate"] for name in names], color="#4477aa")
    axes[0].set(title="answers that fork", xlim=(0, 1))
    for axis, title, shown in (
        (axes[1], f"{SEQUENTIAL} / {PARALLEL}", (("steps", "steps"), ("time", "decode_seconds"))),
        (axes[2], f"{SEQUENTIAL} / {PARALLEL}", (("KV pages read", "pages_read"), ("KV pages held", "pages_held"))),
    ):
        for number, (label, key) in enumerate(shown):
            values = [report.ratios(SEQUENTIAL, name)[key] for name in names]
            axis.barh([place + 0.2 - 0.4 * number for place in places], values, 0.38, label=label)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(list(places), names)
        axis.set(title=title)
        axis.legend()
    right = {way: report.summary(way) for way in report.answers}
    if all("details" in summary for summary in right.values()):
        for number, key in enumerate(("details", "exact")):
            axes[3].bar(
                [place + 0.4 * number for place in range(len(right))],
                [one[key] for one in right.values()],
                0.38,
                label=key,
            )
        axes[3].set_xticks([place + 0.2 for place in range(len(right))], list(right))
        axes[3].set(title="exactly right", ylim=(0, 1))
        axes[3].legend(loc="lower right")
    else:
        ways = [way for way in report.answers if way != PARALLEL]
        axes[3].bar(ways, [report.agreement(way, PARALLEL)["similarity"] for way in ways], color="#228833")
        axes[3].set(title=f"words that agree with {PARALLEL}", ylim=(0, 1))
    for axis in axes[:3]:
        axis.invert_yaxis()
    figure.savefig(path, dpi=120, format="png")


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.fmean(values) if values else 0.0


def _similar(one: str, two: str) -> float:
    return 1.0 if one == two else difflib.SequenceMatcher(None, one.split(), two.split(), autojunk=False).ratio()
