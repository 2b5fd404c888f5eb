"""What `make default-model` runs, without the hours that it takes: its commands, its files, its first weights."""

from __future__ import annotations

import importlib.util
import re
import shlex
import statistics
from pathlib import Path
from types import ModuleType

import apar
import pytest
import torch
import yaml
from apar.cli import _parser
from apar.data.synth import KINDS

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "bench" / "train" / "default"


@pytest.fixture(scope="module")
def start() -> ModuleType:
    specification = importlib.util.spec_from_file_location("start", RECIPE / "start.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def expanded(line: str, variables: dict[str, str]) -> str:
    while found := re.search(r"\$\((\w+)\)", line):
        line = line.replace(found[0], variables[found[1]])
    return line


def recipe() -> list[str]:
    """The commands of the target, with the variables of the Makefile put in."""
    makefile = (ROOT / "Makefile").read_text()
    variables = dict(re.findall(r"^(\w+) :?\??= (.+)$", makefile, re.M)) | {"RUN": "python", "CURDIR": str(ROOT)}
    body = re.search(r"^default-model: build\n((?:\t.+\n)+)", makefile, re.M)[1]
    return [expanded(line, variables).strip() for line in body.splitlines()]


def test_its_commands_are_understood_and_make_the_files_that_training_reads() -> None:
    made, seeds = set(), []
    for line in recipe():
        words = shlex.split(line)
        if words[:5] == ["PYTHONPATH=.:python", "python", "-m", "apar", "data"]:
            options = _parser(words[4:]).parse_args(words[4:])
            assert set(options.kinds or ()) <= set(KINDS)
            made.add(options.output)
            seeds.append((options.seed, options.split))
        for module in re.findall(r"-m (bench\.\w+)", line):
            assert importlib.util.find_spec(module), module
        for path in re.findall(r"bench/[\w/]+\.(?:py|yaml)", line):
            assert (ROOT / path).is_file(), path
    assert len(set(seeds)) == len(seeds), "no records twice, and none of the training held out"
    read = {RECIPE / path for name in ("first", "second") for path in data_of(name)}
    assert {path.resolve() for path in read} == {ROOT / path for path in made}


def data_of(name: str) -> list[str]:
    config = yaml.safe_load((RECIPE / f"{name}.yaml").read_text())
    return [*config["data"], *config.get("heldout", [])]


def test_the_first_weights_copy(start: ModuleType) -> None:
    """Behind a token that stood before the likeliest token is the one that followed it then; by chance it is not."""
    _, tokenizer = apar.load()
    ranks = {}
    for wired in (False, True):
        model = start.small_llama(tokenizer, 0)
        if wired:
            start.wire(model, 0)
        ranks[wired] = statistics.median(_rank_of_the_copy(model, seed) for seed in range(21))
    assert ranks[True] == 0
    assert ranks[False] > 100


@torch.no_grad()
def _rank_of_the_copy(model: torch.nn.Module, seed: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randperm(1024, generator=generator)[:48] + 512
    place = int(torch.randint(5, 40, (), generator=generator))
    logits = model(torch.cat([tokens, tokens[place, None]])[None]).logits[0, -1]
    return int((logits > logits[tokens[place + 1]]).sum())
