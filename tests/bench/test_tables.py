"""The tables that are made of result files: what they say where there are files, and where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import tables
from bench.common import RESULTS

MACHINE = {"card": "NVIDIA H200", "driver": "1.2", "commit": "0123456789abcdef", "date": "2027-01-02"}


def write(folder: Path, name: str, **content: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"machine": MACHINE} | content))


def test_nothing_is_claimed_without_files(tmp_path):
    results = tables.newest_card(tmp_path)
    assert results == {}
    table = tables.goals_table(results)
    rows = table.splitlines()[2:]
    assert len(rows) == 13
    assert all(row.rstrip(" |").endswith("not measured") for row in rows)
    assert "on NVIDIA" not in table
    assert "not measured" in tables.shapes_table(results)


def test_results_of_the_cpu_are_no_card(tmp_path):
    folder = tmp_path / "some-cpu"
    folder.mkdir()
    (folder / "advance.json").write_text(json.dumps({"machine": {"processor": "x", "date": "2027-01-01"}}))
    assert tables.newest_card(tmp_path) == {}


def test_numbers_come_from_the_newest_card(tmp_path):
    shape = {"shape": "F1", "heads": "32/8", "us": 12.34, "goal_us": 16.9, "baselines_us": {"a": 30.0, "b": 20.0}}
    large = {"shape": "flat", "heads": "32/8", "cold": True, "of_read_ceiling": 0.934}
    write(
        tmp_path / "h200",
        "attention",
        large=[large, large | {"cold": False, "of_read_ceiling": 0.1}],
        medium=[{"of_read_ceiling": 0.7}, {"of_read_ceiling": 0.66}],
        request=[{"us": 7.04, "launches_per_layer": 1}, {"us": 5.0, "launches_per_layer": 1}],
        shapes=[shape, {"shape": "F1", "heads": "16/1", "failed": "out of memory"}],
        fp8=[{"times_bf16": 1.81}, {"failed": "refused"}],
        summary={"shapes_within_goal": 1, "shapes_measured": 1, "times_flashinfer_cascade": 2.5},
    )
    write(tmp_path / "h200", "advance", points=[{"branches": 64, "steady_us": 4.0}, {"branches": 1024, "steady_us": 9}])
    old = tmp_path / "a100"
    old.mkdir()
    (old / "attention.json").write_text(json.dumps({"machine": MACHINE | {"date": "2026-12-31", "card": "A100"}}))
    results = tables.newest_card(tmp_path)
    rows = dict(line.strip("| ").split(" | ", 1) for line in tables.goals_table(results).splitlines()[2:])
    assert rows["flat, heads 32/8: at least 200 MB of KV"].endswith("| 93%")
    assert rows["flat, heads 32/32: at least 200 MB of KV"].endswith("| not measured")
    assert rows["32 to 64 MB of KV, cold cache"].endswith("| 66%")
    assert rows["one request under a graph"].endswith("| 7.0 us, 1 launch")
    assert rows["the same, geometric mean"].endswith("| 2.50 x")
    assert rows["fp8 caches, at least 200 MB"].endswith("| 1.81 x")
    assert rows["advance, 64 branches; 1,024"].endswith("| 4.0 us; 9.0 us")
    assert rows["decode step of a 7B Llama, captured, 1 to 8 branches"].endswith("| not measured")
    assert "| F1 | not measured | 12.3, 16.9, 20.0 | not measured |" in tables.shapes_table(results)
    for table in (tables.goals_table, tables.shapes_table):
        assert "NVIDIA H200, driver 1.2, 0123456789, 2027-01-02" in table(results)


def test_filling_replaces_what_is_between_the_marks():
    text = "a\n<!-- table: x -->\nold\n<!-- end of table -->\nb\n<!-- table: y -->\nkept\n<!-- end of table -->\n"
    filled = tables.fill(text, "x", "| new |")
    assert filled == tables.fill(filled, "x", "| new |")
    assert "old" not in filled
    assert "kept" in filled
    assert filled.startswith("a\n<!-- table: x -->\n\n| new |\n\n<!-- end of table -->\nb\n")
    for broken in ("nothing", text.replace("<!-- end of table -->", "")):
        with pytest.raises(ValueError, match="the table x is there 0 times"):
            tables.fill(broken, "x", "")


def test_the_files_are_up_to_date():
    """`python -m bench.tables` was run after the last change of a result."""
    results = tables.newest_card(tables.RESULTS)
    found = set()
    for name in tables.FILES:
        text = (tables.ROOT / name).read_text()
        for table in tables.names_in(text):
            if table in tables.TABLES:
                found.add(table)
                assert tables.fill(text, table, tables.TABLES[table](results)) == text, f"{name}: {table}"
    assert found == set(tables.TABLES)


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("*.json")), ids=lambda path: path.name)
def test_result_files_are_json_for_everybody(path):
    def refuse(word):
        raise ValueError(f"{word} is no JSON")

    json.loads(path.read_text(), parse_constant=refuse)
