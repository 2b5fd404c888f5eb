"""Fills the tables of README.md and docs/ from the result files of cards: python -m bench.tables [--check]

A table stands between ``<!-- table: name -->`` and ``<!-- end of table -->``; what is between is replaced. A number
whose file is missing is "not measured": no number comes from anywhere else. With --check nothing is written, and the
exit status is 1 where a file is not up to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
FILES = ("README.md", "docs/cuda.md", "docs/kernels.md")
NOT_MEASURED = "not measured"
HEADS = ("32/32", "32/8", "16/1")

Results = dict[str, Any]  # file name without .json -> content


def newest_card(folder: Path) -> Results:
    """The results of one card: of those with an attention.json the one measured last; empty if there is none."""
    cards = []
    for path in folder.glob("*/*.json"):
        machine = json.loads(path.read_text()).get("machine", {})
        if "card" in machine:
            cards.append((machine.get("date", ""), path.parent))
    if not cards:
        return {}
    _, newest = max(cards)
    return {path.stem: json.loads(path.read_text()) for path in sorted(newest.glob("*.json"))}


# ---- tables ----


def goals_table(results: Results) -> str:
    """What is held against a goal, with what a card gave."""
    attention, decode, advance = (results.get(name, {}) for name in ("attention", "decode", "advance"))

    def large(shape: str, heads: str) -> str:
        found = find(attention.get("large", []), shape=shape, heads=heads, cold=True)
        return percent(found, "of_read_ceiling")

    medium = [found["of_read_ceiling"] for found in attention.get("medium", []) if "of_read_ceiling" in found]
    request = [found for found in attention.get("request", []) if "us" in found]
    summary = attention.get("summary", {})
    fp8 = [found["times_bf16"] for found in attention.get("fp8", []) if "times_bf16" in found]
    steps = [row["of_floor"] for row in decode.get("steps", [])]
    rows = [
        (f"{shape}, heads {heads}: at least 200 MB of KV", "90 % of the read ceiling", large(shape, heads))
        for shape in ("64 requests of vicuna80", "flat")
        for heads in HEADS[:2]
    ]
    rows += [
        ("32 to 64 MB of KV, cold cache", "65 % of the read ceiling", f"{min(medium):.0%}" if medium else NOT_MEASURED),
        ("one request under a graph", "8 us per layer, one launch", _request_text(request)),
        (
            "35 published shapes x 3 head counts",
            "each at most 1.35 x ideal + 6 us",
            _of(summary, "shapes_within_goal", "shapes_measured"),
        ),
        ("the same, geometric mean", "2 x FlashInfer cascade", times(summary.get("times_flashinfer_cascade"))),
        (
            "P19, P20, where nothing is shared",
            "1 x the best flat kernel",
            times(summary.get("times_best_flat_unshared")),
        ),
        ("fp8 caches, at least 200 MB", "1.7 x bf16", times(min(fp8)) if fp8 else NOT_MEASURED),
        ("advance, 64 branches; 1,024", "5 us; 10 us", _advance_text(advance)),
        (
            "decode step of a 7B Llama, captured, 1 to 8 branches",
            "1.15 x reading the weights",
            f"{max(steps):.2f} x" if steps else NOT_MEASURED,
        ),
        (
            "speed-up on Vicuna-80 trees over one branch at a time",
            "0.95 of the step ratio",
            number(decode.get("trees", {}).get("of_step_ratio"), "{:.2f}"),
        ),
    ]
    return markdown(("what", "goal on an H200", f"measured{_card_text(results)}"), rows)


def shapes_table(results: Results) -> str:
    """Microseconds of every published shape, with its goal."""
    found = results.get("attention", {}).get("shapes", [])
    if not found:
        return "The published shapes are not measured."
    rows = []
    for name in dict.fromkeys(one["shape"] for one in found):
        cells = [name]
        for heads in HEADS:
            one = find(found, shape=name, heads=heads)
            if one is None or "us" not in one:
                cells.append(NOT_MEASURED)
                continue
            peers = min(one.get("baselines_us", {}).values(), default=None)
            cells.append(f"{one['us']:.1f}, {one['goal_us']:.1f}, {number(peers, '{:.1f}')}")
        rows.append(cells)
    header = ("shape", *(f"{heads}: us, goal, best other" for heads in HEADS))
    return markdown(header, rows) + f"\n\nMeasured{_card_text(results)}, second-level cache flushed before each launch."


def missing_table(results: Results) -> str:
    """Baselines that were left out, and why."""
    notes = results.get("attention", {}).get("missing_baselines", {})
    if "attention" not in results:
        return "No baseline is measured."
    return markdown(("baseline left out", "why"), list(notes.items())) if notes else "No baseline was left out."


TABLES: dict[str, Callable[[Results], str]] = {
    "gpu-goals": goals_table,
    "gpu-shapes": shapes_table,
    "gpu-missing-baselines": missing_table,
}


# ---- filling ----


def fill(text: str, name: str, table: str) -> str:
    """``text`` with the table of this name replaced; raises ValueError unless it is there once."""
    pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end of table -->)", re.DOTALL)
    filled, count = pattern.subn(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)
    if count != 1:
        raise ValueError(f"the table {name} is there {count} times, expected once")
    return filled


def names_in(text: str) -> list[str]:
    return re.findall(r"<!-- table: ([\w-]+) -->", text)


def write_table(path: Path, name: str, table: str) -> None:
    """For scripts that make a table of their own."""
    path.write_text(fill(path.read_text(), name, table))
    print(f"written: table {name} of {path}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(str(cell) for cell in row) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + " --- |" * len(header), *lines[1:]])


def find(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any] | None:
    return next((row for row in rows if all(row.get(key) == value for key, value in wanted.items())), None)


def number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def times(value: float | None) -> str:
    return number(value, "{:.2f} x")


def percent(row: dict[str, Any] | None, key: str) -> str:
    return number(None if row is None else row.get(key), "{:.0%}")


def _of(summary: dict[str, Any], part: str, whole: str) -> str:
    return f"{summary[part]} of {summary[whole]}" if summary.get(whole) else NOT_MEASURED


def _request_text(found: list[dict[str, Any]]) -> str:
    if not found:
        return NOT_MEASURED
    launches = {one["launches_per_layer"] for one in found}
    return f"{max(one['us'] for one in found):.1f} us, {'/'.join(map(str, sorted(launches, key=str)))} launch"


def _advance_text(advance: dict[str, Any]) -> str:
    of = {point["branches"]: point.get("steady_us") for point in advance.get("points", [])}
    if of.get(64) is None or of.get(1024) is None:
        return NOT_MEASURED
    return f"{of[64]:.1f} us; {of[1024]:.1f} us"


def _card_text(results: Results) -> str:
    for content in results.values():
        machine = content["machine"]
        return f" on {machine['card']}, driver {machine['driver']}, {machine['commit'][:10]}, {machine['date']}"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a table is not up to date")
    options = parser.parse_args()
    results = newest_card(RESULTS)
    stale = []
    for name in FILES:
        path = ROOT / name
        before = text = path.read_text()
        for table in names_in(text):
            if table in TABLES:
                text = fill(text, table, TABLES[table](results))
        if text != before:
            stale.append(name)
            if not options.check:
                path.write_text(text)
    print(f"{'not up to date' if options.check else 'written'}: {', '.join(stale) or 'nothing'}")
    sys.exit(1 if options.check and stale else 0)


if __name__ == "__main__":
    main()
