"""The scripts for a GPU, as far as they run without one: shapes, baselines' inputs, the runner, a dry run."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import apar_ext
from bench import gpu, gpu_baselines, gpu_kernels, run_gpu, tree_rows
from bench.gpu_problem import WrongResult, entry_places, make_problem

ROOT = Path(__file__).resolve().parents[2]
SHARED_SHAPES = ROOT.parent / "shared" / "data" / "kernel_shapes.json"


def test_ideal_times_are_the_published_ones():
    if not SHARED_SHAPES.exists():
        pytest.skip("shared/data/kernel_shapes.json is not here")
    published = {shape["name"]: shape["ideal_us_h200"] for shape in json.loads(SHARED_SHAPES.read_text())["shapes"]}
    compared = 0
    for shape in tree_rows.kernel_shapes():
        for heads in tree_rows.HEADS:
            given = published[shape.name].get(f"{heads[0]}/{heads[1]}")
            if given is not None:
                assert tree_rows.ideal_us(shape.rows, *heads) == pytest.approx(given, abs=0.051)
                compared += 1
    assert compared > 80


def test_real_answers_are_as_large_as_the_goals_want():
    for heads, more_prompt in (((32, 32), 0), ((32, 8), 512)):
        rows = tree_rows.vicuna_rows(64, more_prompt=more_prompt)
        assert tree_rows.unique_bytes(rows, *heads) >= 200e6
        assert 3 < len(rows) / 64 < 10
    for heads, requests in (((32, 8), 32), ((32, 32), 8), ((32, 8), 40)):
        assert 32e6 <= tree_rows.unique_bytes(tree_rows.vicuna_rows(requests), *heads) <= 64e6


@pytest.fixture
def problem():
    """Trees whose branches leave the trunk inside of a page."""
    torch.manual_seed(0)
    rows = [
        *[[(0, 0, 100), (1 + branch, 0, 9 + branch)] for branch in range(3)],
        [(0, 0, 37), (5, 0, 40)],
        *[[(6, 0, 64), (7 + branch, 0, 5)] for branch in range(2)],
    ]
    return make_problem(rows, (4, 2), torch.device("cpu"), head_dim=64)


def test_checks_find_wrong_results(problem):
    right = problem.call()
    assert problem.check(right) < 5e-3
    with pytest.raises(WrongResult, match="peer is wrong: relative error"):
        problem.check(right * 1.1, name="peer")


@pytest.mark.parametrize("name", ["SDPA on gathered KV", "FlexAttention"])
def test_baselines_of_torch_compute_the_same(problem, name):
    [baseline] = [one for one in gpu_baselines.BASELINES if one.name == name]
    if name == "FlexAttention":
        torch.compiler.set_stance("force_eager")
    try:
        problem.check(baseline.make(problem)(), name=name)
    finally:
        torch.compiler.set_stance("default")


def attend_flat(problem, flat) -> torch.Tensor:
    """Softmax over whole pages, as paged decoding reads them."""
    outputs = []
    for row, (pages, last) in enumerate(zip(flat.row_pages, flat.last_page_entries, strict=True)):
        entries = (len(pages) - 1) * 16 + last
        k, v = (
            cache[pages].transpose(1, 2).flatten(0, 1)[:entries].transpose(0, 1).float()
            for cache in (flat.k_cache, flat.v_cache)
        )
        q = problem.q[row].float().view(k.shape[0], -1, k.shape[2])
        outputs.append((torch.softmax(q @ k.transpose(1, 2) * k.shape[2] ** -0.5, dim=-1) @ v).flatten(0, 1))
    return torch.stack(outputs)


def test_flat_pages_share_what_pages_can_share(problem):
    flat = gpu_baselines.flat_pages(problem)
    problem.check(attend_flat(problem, flat), name="flat pages")
    first, second, _, fourth, *_ = flat.row_pages
    assert first[:6] == second[:6]  # 100 entries: six whole pages
    assert first[6] != second[6]
    assert fourth[:2] == first[:2]
    assert fourth[2] != first[2]
    assert flat.k_cache.shape[0] == len({page for pages in flat.row_pages for page in pages})


def test_cascade_levels_are_the_rows_again(problem):
    levels = gpu_baselines.cascade_levels(problem)
    assert [level.row_bounds for level in levels] == [[0, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6]]
    for place, level in enumerate(levels):
        for group, (pages, last) in enumerate(zip(level.pages, level.last_page_entries, strict=True)):
            for row in range(level.row_bounds[group], level.row_bounds[group + 1]):
                wanted, offsets = entry_places(problem.page_table, problem.rows[row][place : place + 1])
                assert wanted.unique_consecutive().tolist() == pages
                assert offsets[-1] + 1 == last
    uneven = make_problem([[(0, 0, 5)], [(0, 0, 5), (1, 0, 3)]], (2, 2), torch.device("cpu"), head_dim=64)
    with pytest.raises(ValueError, match="rows have 1 to 2 ranges"):
        gpu_baselines.cascade_levels(uneven)


def test_missing_baselines_are_named(problem, tmp_path):
    card = gpu.Card(argparse.Namespace(dry_run=True, out=tmp_path))
    notes: dict[str, str] = {}
    times = gpu_baselines.measure_baselines(card, problem, gpu_baselines.FLASHINFER, notes, cold=True)
    if not times:
        assert set(notes) == set(gpu_baselines.FLASHINFER)
        assert all(reason.startswith("not installed") for reason in notes.values())


def test_without_a_card_scripts_say_so():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.Card(argparse.Namespace(dry_run=False, out=None))


def test_files_name_the_card_the_driver_and_the_commit(tmp_path):
    card = gpu.Card(argparse.Namespace(dry_run=True, out=tmp_path))
    machine = json.loads(card.write("x", {"a": 1}).read_text())["machine"]
    assert {"card", "driver", "commit", "date", "torch", "apar"} <= set(machine)
    assert machine["card"] == "dry run"
    assert gpu.Card(argparse.Namespace(dry_run=True, out=None)).folder != gpu.RESULTS


# ---- the runner ----


def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(dry_run=False, out=tmp_path, parts=())


def run(step: run_gpu.Step, tmp_path: Path, limit: float = 20) -> dict:
    with (tmp_path / "log").open("w") as log:
        return run_gpu.run_step(step, options(tmp_path), limit, log)


def test_steps_pass_fail_and_are_skipped(tmp_path):
    assert run(run_gpu.Step("a", 5, command=("true",)), tmp_path)["status"] == "passed"
    assert run(run_gpu.Step("a", 5, command=("false",)), tmp_path)["status"] == "failed: exit status 1"
    missing = run_gpu.Step("a", 5, command=("true",), needs="no-such-program")
    assert run(missing, tmp_path)["status"] == "skipped: no-such-program is not here"
    assert "is not here" in run(run_gpu.Step("a", 5, module="no_such_module"), tmp_path)["status"]


def test_a_step_that_takes_too_long_is_ended_with_all_it_started(tmp_path):
    alive = tmp_path / "alive"
    command = ("sh", "-c", f"(sleep 3; touch {alive}) & sleep 60")
    done = run(run_gpu.Step("a", 1, command=command), tmp_path, limit=0.5)
    assert done["status"].startswith("too slow")
    assert done["seconds"] < 10
    assert subprocess.run(["sleep", "3.5"]).returncode == 0
    assert not alive.exists()


def test_families_of_kernels_are_asked_for_in_turn(problem, monkeypatch):
    monkeypatch.setenv(gpu_kernels.VARIABLE, "best")
    seen = []

    def call(layer: int = 0) -> torch.Tensor:
        seen.append(os.environ[gpu_kernels.VARIABLE])
        return apar_ext.tree_attention(problem.q, *problem.layers[layer], problem.plan)

    monkeypatch.setattr(problem, "call", call)
    found = gpu_kernels.measure(gpu.Card(argparse.Namespace(dry_run=True, out=None)), problem)
    assert os.environ[gpu_kernels.VARIABLE] == "best"
    assert list(dict.fromkeys(seen)) == list(gpu_kernels.FAMILIES)
    assert all(found[family]["same_bits"] and found[family]["us_cold"] > 0 for family in gpu_kernels.FAMILIES)


def test_all_steps_fit_the_time():
    steps = run_gpu.steps()
    assert {step.name for step in steps} >= {"attention", "advance", "decode", "tests", "memcheck", "racecheck"}
    assert sum(step.seconds for step in steps) <= 600
    assert run_gpu.TOTAL_SECONDS < 540


def test_one_command_goes_through_the_motions(tmp_path):
    """Tiny sizes on the CPU: results are checked and written as on a card."""
    command = ["sh", "bench/run_gpu.sh", "--dry-run", "--out", str(tmp_path), "--only", "attention", "memcheck"]
    command += ["--parts", "request", "fp8"]
    environment = {"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "run.log").read_text()
    run_file = json.loads((tmp_path / "run.json").read_text())
    assert [(step["name"], step["status"]) for step in run_file["steps"]] == [
        ("attention", "passed"),
        ("memcheck", "skipped: dry run"),
    ]
    attention = json.loads((tmp_path / "attention.json").read_text())
    assert set(attention["read_ceiling"]) == {"memory", "cold_48mb", "warm_48mb"}
    assert len(attention["request"]) == 5
    assert all(found["relative_error"] < 5e-3 for found in attention["request"])
    assert all("fp8" in found for found in attention["fp8"])
