"""From chat files to a file of trees: formats, sizes, compressed and broken files, splits, negatives, appending."""

from __future__ import annotations

import collections
import gzip
import json
import os
import signal
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from apar.cli import main
from apar.data import inputs as inputs_module
from apar.data import read_trees
from apar.data.build import BuildOptions, build, malformed_lines, report_lines
from apar.data.forks import ForkOptions
from apar.data.formats import MalformedRecord, answers
from apar.data.inputs import UnreadableInput, read_batches
from apar.data.splits import HELDOUT, choose_sides, near_duplicates, normalized_words, signature

from tests.apar.data.markdown import SHARED, chat_records, needs_shared_data

DETAIL = "It keeps the mind clear and the body ready."
LIST = f"1. Sleep: {DETAIL}\n2. Food: {DETAIL}"


def pairs(count: int, forked: bool = True) -> list[dict]:
    answer = LIST if forked else "Yes."
    # Prompts with no run of words in common.
    return [
        {"prompt": " ".join(f"w{number}x{place}" for place in range(6)), "response": answer} for number in range(count)
    ]


def write(path: Path, records: list, form: str = "lines") -> str:
    if form == "lines":
        data = "".join(json.dumps(record) + "\n" for record in records)
    else:
        data = json.dumps(records, indent=None if form == "array" else 2)
    raw = data.encode()
    path.write_bytes(gzip.compress(raw) if path.name.endswith(".gz") else raw)
    return str(path)


USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"prompt": "Hi", "response": "Hello", "id": 3, "tags": []}, [(1, "Hello")]),
        ({"instruction": "Hi", "input": "you", "output": "Hello"}, [(1, "Hello")]),
        ({"instruction": "Hi", "context": "you", "response": "Hello"}, [(1, "Hello")]),
        ({"prompt": [USER, BOT, USER], "context": "you", "response": "Hello"}, [(3, "Hello")]),
        ({"prompt": "Hi", "response": "Hello", "tree": "oak"}, [(1, "Hello")]),
        ({"instruction": "Hi", "input": "", "output": "Hello", "system": "Be kind."}, [(2, "Hello")]),
        ({"prompt": [USER], "completion": "Hello"}, [(1, "Hello")]),
        ({"prompt": "Hi", "response": ["Hel", "lo"]}, [(1, "Hello")]),
        ({"messages": [USER, BOT, USER, {"role": "assistant", "content": [{"type": "text", "text": "Bye"}]}]},
         [(1, "Hello"), (3, "Bye")]),
        ({"messages": [BOT, USER, BOT], "system": "x"}, [(3, "Hello")]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [(1, "Hello")]),
        ({"conversation": [{"role": "system", "content": "x"}, USER, BOT, USER]}, [(2, "Hello")]),
        ({"messages": [{"role": "user", "content": " "}, BOT, USER, BOT]}, [(3, "Hello")]),
        ({"messages": None, "prompt": "Hi", "response": "Hello", "score": float("nan"), "id": 3}, [(1, "Hello")]),
        ({"conversations": [{"from": "human", "value": "Hi", "role": None, "content": None},
                            {"role": "assistant", "content": "Hello", "from": None, "tool_calls": []}]},
         [(1, "Hello")]),
    ],
)  # fmt: skip
def test_formats(record: dict, expected: list) -> None:
    found = answers(record)
    assert [(len(answer.messages), answer.text) for answer in found] == expected
    assert all(
        answer.messages[-1] == {"role": "user", "content": "Hi\n\nyou" if "you" in record.values() else "Hi"}
        for answer in found
    )
    assert found[0].extra == ({"id": 3} if "id" in record else {})
    assert answers(record, last_only=True) == found[-1:]


def test_what_is_no_part_of_a_conversation_is_kept() -> None:
    [found] = answers({"messages": [USER, BOT], "context": "c", "input": "i", "system": None})
    assert (found.messages, found.extra) == ([USER], {"context": "c", "input": "i"})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "expected an object, got list"),
        ({}, "expected messages, conversations, or prompt.*keys none"),
        ({"prompt": "Hi"}, "got the keys prompt"),
        ({"prompt": "Hi", "response": " "}, "response: the answer is empty"),
        ({"prompt": "", "response": "a"}, "prompt: the prompt is empty"),
        ({"prompt": 3, "response": "a"}, "prompt: expected text, got int 3"),
        ({"messages": []}, "messages: expected a list of messages"),
        ({"messages": [USER]}, "there is no answer"),
        ({"messages": [BOT]}, "there is no answer"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "message 1 has the role 'wizard'"),
        ({"messages": ["x"]}, "message 1 is str 'x'"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "message 2: expected text, got nothing"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "message 2: the answer is empty"),
        ({"messages": [USER, {**BOT, "tool_calls": [{}]}]}, "message 2 calls a tool"),
    ],
)
def test_malformed_records(record: object, message: str) -> None:
    with pytest.raises(MalformedRecord, match=message):
        answers(record)


@pytest.mark.parametrize("form", ["lines", "array", "indented"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("batch_bytes", [10, 333, 1 << 20])
def test_files_are_read_in_pieces_of_any_size(tmp_path, monkeypatch, form: str, ending: str, batch_bytes: int) -> None:
    monkeypatch.setattr(inputs_module, "_BATCH_BYTES", batch_bytes)
    records = [{"prompt": f"ä {number}", "response": 'a "]}[{ \\ \n' * number} for number in range(40)]
    path = write(tmp_path / f"chat.json{ending}", records, form)
    batches = list(read_batches(path))
    assert [json.loads(raw) for batch in batches for raw in batch.records] == records
    assert {batch.source for batch in batches} == {"chat"}
    lines = [line for batch in batches for line in batch.lines]
    stride = {"lines": 1, "array": 0, "indented": 4}[form]
    first = 2 if form == "indented" else 1
    assert lines == [first + stride * number for number in range(40)]
    if batch_bytes == 10 and form != "lines":
        assert len(batches) == 40


def test_objects_over_several_lines_and_byte_order_marks(tmp_path) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(json.dumps(record, indent=1).encode() for record in pairs(3)))
    assert sum(len(batch.records) for batch in read_batches(str(path))) == 3
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(pairs(1)[0]).encode())
    assert build([str(path)], tmp_path / "out").written == 1
    path.write_bytes(b"\xef\xbb\xbf")
    assert list(read_batches(str(path))) == []


def test_compressed_files_and_pipes_by_any_name(tmp_path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(gzip.compress(json.dumps(pairs(1)[0]).encode()))
    assert build([str(path)], tmp_path / "out").written == 1
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe:
        pipe.writelines(json.dumps(record).encode() + b"\n" for record in pairs(20))
    assert build([f"/dev/fd/{reading}"], tmp_path / "out").written == 20
    os.close(reading)


@pytest.mark.parametrize("form", ["lines", "array"])
def test_odd_json_is_counted_and_stops_nothing(tmp_path, form: str) -> None:
    good = json.dumps(pairs(1)[0])
    odd = [
        '{"prompt": "a", "response": "b", "response": "c"}',
        '{"prompt": "a", "response": "b", "long": %s}' % ("9" * 5000),
        "3",
    ]
    path = tmp_path / "chat.json"
    path.write_text("\n".join([good, *odd, good]) if form == "lines" else f"[{','.join([good, *odd, good])},]")
    report = build([str(path)], tmp_path / "out")
    assert (report.written, report.malformed) == (2, 3)
    reasons = [json.loads(line)["reason"] for line in Path(report.malformed_list).read_text().splitlines()]
    assert "the key 'response' stands twice" in reasons[0]


def test_records_keep_their_own_source_unless_one_is_given(tmp_path) -> None:
    path = write(tmp_path / "mix.jsonl", [{**pairs(1)[0], "source": source} for source in ("a", "", 3)])
    for given, expected in ((None, ["a", "mix", "mix"]), ("mine", ["mine"] * 3)):
        build([path], tmp_path / "out", BuildOptions(source=given))
        assert [tree.source for tree in read_trees(tmp_path / "out")] == expected


@pytest.mark.parametrize("workers", [1, 2])
def test_records_become_trees(tmp_path, monkeypatch, workers: int) -> None:
    monkeypatch.setattr("apar.data.build._SMALL_INPUT_BYTES", 0)
    path = write(
        tmp_path / "tips.jsonl", [{**pairs(1)[0], "id": 7, "score": None}, {"messages": [USER, BOT, USER, BOT]}]
    )
    report = build([path], tmp_path / "trees.jsonl.gz", BuildOptions(heldout=0, workers=workers))
    trees = list(read_trees(tmp_path / "trees.jsonl.gz"))
    assert [tree.tree.text for tree in trees] == [LIST, "Hello", "Hello"]
    assert [(tree.num_forks, tree.source, tree.split) for tree in trees] == [(2, "tips", "train")] + [
        (0, "tips", "train")
    ] * 2
    assert trees[0].extra == {"id": 7}
    assert trees[2].messages == [USER, BOT, USER]
    assert (report.records, report.answers, report.written, report.forked, report.prompts) == (2, 3, 3, 1, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tips.jsonl", "trees.jsonl.gz"]
    report = build([path], tmp_path / "last", BuildOptions(last_only=True, source="mine", workers=workers))
    assert [tree.source for tree in read_trees(tmp_path / "last")] == ["mine"] * 2


def test_workers_change_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("apar.data.build._SMALL_INPUT_BYTES", 0)
    monkeypatch.setattr(inputs_module, "_BATCH_BYTES", 500)
    path = write(tmp_path / "in.jsonl", pairs(60) + pairs(30, False))
    outs = []
    for workers in (1, 3):
        build([path], tmp_path / "out", BuildOptions(workers=workers, heldout=0.3, negatives=0.2))
        outs.append((tmp_path / "out").read_bytes())
    assert outs[0] == outs[1]


def test_malformed_records_are_listed_with_their_lines(tmp_path, capsys) -> None:
    path = tmp_path / "chat.jsonl"
    good = json.dumps(pairs(1)[0])
    path.write_text(f'{good}\n\n{{"prompt": 1}}\n{good}\n{{broken\n"text"\n')
    out = tmp_path / "trees.jsonl"
    assert main(["data", "build", str(path), "-o", str(out)]) == 0
    shown = capsys.readouterr()
    assert "2 trees written" in shown.out
    assert "3 malformed records left out" in shown.out
    assert f"{path}, line 3: expected messages" in shown.err
    listed = [json.loads(line) for line in Path(f"{out}.malformed.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in listed] == [(str(path), 3), (str(path), 5), (str(path), 6)]
    assert main(["data", "build", str(path), "-o", str(out), "--strict"]) == 1
    assert f"{path}, line 3: expected messages" in capsys.readouterr().err
    assert len(list(read_trees(out))) == 2, "what was there stays"
    path.write_text(good)
    assert main(["data", "build", str(path), "-o", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["malformed_list"] is None
    assert not Path(f"{out}.malformed.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "gone.jsonl", "cannot be read: .*No such file"),
        (b"plain", "a.jsonl.gz", "cannot be read: Not a gzipped file"),
        (gzip.compress(json.dumps(pairs(300)).encode())[:-20], "a.json.gz", "cannot be read to its end"),
        (b'[{"prompt": "a", "response": "b"},', "a.json", "line 1: it breaks off"),
        (b'[{"prompt": "a", "response": "b"}', "a.json", "line 1: it breaks off, the array is not closed"),
        (b'[{"prompt": "a", "respo', "a.json", "line 1: it breaks off"),
        (b'[\n{"prompt": "a", "response": "b"},\n{"prompt": }, {"prompt": "c", "response": "d"}]', "a.json",
         "line 3: broken JSON"),
        (b'[{"prompt": "\xff\xfe"}]', "a.json", "not UTF-8"),
        (b'[{"prompt": "a", "response": "b"}]\n[]', "a.json", "line 2: more stands behind the end of the array"),
        (b"[\n" + b"[" * 100_000, "a.json", "line 2: the JSON is nested too deeply"),
        (json.dumps(pairs(1)).encode("utf-16"), "a.json", "looks like UTF-16, expected UTF-8"),
        (b"# Title\n\ntext\n", "a.md", "none of the 2 records of .*a.md can be used"),
        (b"", "a.jsonl", "a.jsonl has no records"),
        (b"\n \n", "a.jsonl", "a.jsonl has no records"),
        (b"[]", "a.json", "a.json has no records"),
    ],
)  # fmt: skip
def test_unreadable_inputs_stop_and_nothing_is_lost(tmp_path, content: bytes | None, name: str, message: str) -> None:
    good = write(tmp_path / "good.jsonl", pairs(2))
    out = tmp_path / "trees.jsonl"
    build([good], out)
    before = out.read_bytes()
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    inputs = [str(path)] if name.endswith(".md") else [good, str(path)]
    with pytest.raises(UnreadableInput, match=message):
        build(inputs, out)
    assert out.read_bytes() == before
    listed = "trees.jsonl.malformed.jsonl"
    assert {entry.name for entry in tmp_path.iterdir()} - {listed} <= {"good.jsonl", "trees.jsonl", name}
    assert (tmp_path / listed).exists() == name.endswith(".md")


def test_one_useless_input_stops_though_others_are_good(tmp_path) -> None:
    good, bad = write(tmp_path / "good.jsonl", pairs(2)), write(tmp_path / "bad.jsonl", [{"prompt": "Why?"}] * 3)
    with pytest.raises(
        UnreadableInput, match=r"none of the 3 records of .*bad.jsonl can be used.*\n.*bad.jsonl, line 1:"
    ):
        build([good, bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_of_trees_is_no_file_of_chats(tmp_path) -> None:
    turns = [USER, BOT, {"role": "user", "content": "And?"}]
    path = write(tmp_path / "trees.jsonl", [{"messages": turns, "tree": [{"text": "So."}], "source": "a"}])
    with pytest.raises(UnreadableInput, match="it is a tree already"):
        build([path], tmp_path / "out")


def test_a_full_disk_and_an_interruption_leave_what_was_there(tmp_path, monkeypatch) -> None:
    path, out = write(tmp_path / "in.jsonl", pairs(3)), tmp_path / "out"
    out.write_text("before")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr("apar.data.build._write_chosen", fail)
        with pytest.raises(type(error)) as raised:
            build([path], out)
        assert not isinstance(error, OSError) or raised.value.filename == str(out)
        assert out.read_text() == "before"
        assert {entry.name for entry in tmp_path.iterdir()} == {"in.jsonl", "out"}


def killed(*_) -> None:
    os._exit(9)


def test_a_process_that_is_killed_says_where(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("apar.data.build._SMALL_INPUT_BYTES", 0)
    monkeypatch.setattr("apar.data.build.convert", killed)
    with pytest.raises(RuntimeError, match=r"in.jsonl, line 1 or behind: a process that cuts answers was killed"):
        build([write(tmp_path / "in.jsonl", pairs(3))], tmp_path / "out", BuildOptions(workers=2))
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


def test_terminating_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    path, out = write(tmp_path / "in.jsonl", pairs(3)), tmp_path / "out"
    out.write_text("before")
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("apar.data.build._write_chosen", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as raised:
            main(["data", "build", path, "-o", str(out)])
        assert raised.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert out.read_text() == "before"
    assert {entry.name for entry in tmp_path.iterdir()} == {"in.jsonl", "out"}


@pytest.mark.parametrize("fault", ["raises", "loses text"])
def test_a_record_that_cannot_be_cut_is_left_out(tmp_path, monkeypatch, fault) -> None:
    """All of it, also where only one of its answers is at fault."""

    def cut(text: str, *_: object) -> list[dict[str, str]]:
        if text != "answer 1":
            return [{"text": text}]
        if fault == "raises":
            raise IndexError("list index out of range")
        return [{"text": "other"}]

    monkeypatch.setattr("apar.data.convert.paragraphs", cut)
    turns = [("user", "q"), ("assistant", "answer 0"), ("user", "more"), ("assistant", "answer 1")]
    talk = {"messages": [{"role": role, "content": content} for role, content in turns]}
    path = write(tmp_path / "in.jsonl", [{"prompt": "a", "response": "answer 0"}, talk])
    report = build([path], tmp_path / "out")
    assert (report.records, report.malformed, report.written) == (2, 1, 1)
    assert "in.jsonl, line 2: a fault of the rules: " in malformed_lines(report)
    with pytest.raises(ValueError, match=r"in.jsonl, line 2: a fault of the rules: "):
        build([path], tmp_path / "out", BuildOptions(strict=True))


@pytest.mark.parametrize(("form", "message"), [("lines", "line 2: longer than 0 MB"), ("array", "line 1: a record of")])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_record_without_an_end_is_not_read_whole(tmp_path, monkeypatch, form, message, ending) -> None:
    monkeypatch.setattr(inputs_module, "_LARGEST_RECORD", 4000)
    monkeypatch.setattr(inputs_module, "_BATCH_BYTES", 100)
    records = [{"prompt": "a", "response": "b" * size} for size in (3900, 20_000)]
    path = write(tmp_path / f"in.jsonl{ending}", records, form)
    with pytest.raises(UnreadableInput, match=message):
        list(read_batches(path))
    assert len(list(read_batches(write(tmp_path / "one.jsonl", records[:1], form)))) == 1


def test_links_and_devices_stay(tmp_path) -> None:
    path = write(tmp_path / "in.jsonl", pairs(2))
    (tmp_path / "link").symlink_to(tmp_path / "far")
    assert build([path], tmp_path / "link").written == 2
    assert (tmp_path / "link").is_symlink()
    assert len(list(read_trees(tmp_path / "far"))) == 2
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ValueError, match="is a device or a pipe, expected the name of a file"):
            build([path], target)
    with pytest.raises(ValueError, match=r"x\.malformed\.jsonl is an input, too"):
        build([write(tmp_path / "x.malformed.jsonl", pairs(1))], tmp_path / "x")


def test_the_report_says_how_deep_the_decoder_must_go(tmp_path) -> None:
    nested = f"1. Sleep:\n   - Bed: {DETAIL}\n   - Night: {DETAIL}\n2. Food: {DETAIL}"
    path = write(tmp_path / "in.jsonl", [{"prompt": "a", "response": nested}, *pairs(1)])
    for depth, levels in ((1, 2), (2, 3)):
        report = build([path], tmp_path / "out", BuildOptions(ForkOptions(max_depth=depth)))
        assert report.levels == levels == max(tree.tree.depth for tree in read_trees(tmp_path / "out"))
        assert ("3 levels of branches, the trunk counted" in report_lines(report)) == (levels == 3)
    assert build([path], tmp_path / "out", BuildOptions(ForkOptions(("bullets",)), append=True)).levels == 3


def test_bad_calls(tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "in.jsonl", pairs(1))
    with pytest.raises(ValueError, match="is an input, too"):
        build([path], path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        build([path], tmp_path)
    with pytest.raises(ValueError, match="at least one file"):
        build([], tmp_path / "out")
    with pytest.raises(ValueError, match="heldout: expected 0 to 1, got 2"):
        BuildOptions(heldout=2)
    for value in (float("inf"), float("nan"), -1):
        with pytest.raises(ValueError, match="negatives: expected a number, at least 0, got"):
            BuildOptions(negatives=value)
    with pytest.raises(ValueError, match="workers: expected at least 1"):
        BuildOptions(workers=0)
    with pytest.raises(OSError, match="No such file"):
        build([path], tmp_path / "nowhere" / "out")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="first_sentence needs the package pysbd"):
        build([path], tmp_path / "out")
    assert build([path], tmp_path / "out", BuildOptions(ForkOptions(("numbered",)))).forked == 1


def test_negatives_keep_their_ratio(tmp_path) -> None:
    forked = pairs(40)
    plain = [{"prompt": f"other{number} q{number}", "response": "No."} for number in range(200)]
    path, out = write(tmp_path / "in.jsonl", forked + plain), tmp_path / "out"
    for ratio, kept in ((None, 200), (1.0, 40), (0.5, 20), (0, 0), (9, 200)):
        report = build([path], out, BuildOptions(negatives=ratio))
        assert (report.written, report.forked, report.dropped) == (40 + kept, 40, 200 - kept)
        assert sum(tree.num_forks == 0 for tree in read_trees(out)) == kept
    first = build([path], out, BuildOptions(negatives=0.5)) and out.read_bytes()
    build([path], out, BuildOptions(negatives=0.5, seed=1))
    assert out.read_bytes() != first


def test_held_out_prompts_are_about_their_share_and_stay(tmp_path) -> None:
    records = pairs(2000, False)
    path, out = write(tmp_path / "in.jsonl", records), tmp_path / "out"
    report = build([path], out, BuildOptions(heldout=0.1))
    assert 0.07 < report.heldout / 2000 < 0.13
    sides = {tree.messages[0]["content"]: tree.split for tree in read_trees(out)}
    build([write(tmp_path / "less.jsonl", records[::-1][:500])], out, BuildOptions(heldout=0.1))
    assert all(sides[tree.messages[0]["content"]] == tree.split for tree in read_trees(out)), (
        "no matter what else is there"
    )
    assert build([path], out, BuildOptions(heldout=0)).heldout == 0
    assert build([path], out, BuildOptions(heldout=1)).heldout == 2000


def test_near_duplicates_and_turns_of_a_conversation_share_a_side(tmp_path) -> None:
    rng = np.random.default_rng(0)
    records = []
    for number in range(150):
        words = [f"w{value}" for value in rng.integers(0, 10**6, 40)]
        other = list(words)
        other[int(rng.integers(40))] = "changed"
        records += [
            {"prompt": " ".join(words), "response": "Yes.", "pair": number},
            {"prompt": " ".join(other).upper() + "!", "response": "No.", "pair": number},
            {"messages": [{"role": "user", "content": " ".join(words)}, BOT, USER, BOT], "pair": number},
        ]
    out = tmp_path / "out"
    report = build([write(tmp_path / "in.jsonl", records)], out, BuildOptions(heldout=0.3))
    sides = collections.defaultdict(set)
    for tree in read_trees(out):
        sides[tree.extra["pair"]].add(tree.split)
    assert all(len(found) == 1 for found in sides.values())
    assert {"train"} in sides.values()
    assert {"heldout"} in sides.values()
    assert (report.prompts, report.groups) == (300, 150)


@pytest.mark.parametrize("size", [1, 10, 41])
def test_as_many_prompts_are_held_out_where_many_are_alike(size: int) -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 3000 * size, dtype=np.uint64)
    groups = np.repeat(np.arange(0, len(keys), size, dtype=np.int32), size)
    undecided = np.zeros(len(keys), np.uint8)
    assert 0.08 < (choose_sides(keys, groups, undecided, 0.1) == HELDOUT).mean() < 0.12
    for share in (0, 1):
        assert (choose_sides(keys, groups, undecided, share) == HELDOUT).mean() == share


def test_words_where_none_are_spaced() -> None:
    assert normalized_words("Größe 12, 如何、ひら。한국어 x") == ["größe", "12", "如", "何", "ひ", "ら", "한국어", "x"]
    prompt = "请用三句话解释一下为什么天空在白天看起来是蓝色的而在傍晚看起来是红色的并且举一个日常生活中的例子"
    signatures = np.stack([signature(normalized_words(text)) for text in (prompt, prompt.replace("三", "五"))])
    assert len(set(near_duplicates(signatures, 0.7).tolist())) == 1


def test_prompts_that_differ_are_not_taken_for_duplicates() -> None:
    signatures = np.stack([signature(normalized_words(pair["prompt"])) for pair in pairs(500)])
    assert len(set(near_duplicates(signatures, 0.7).tolist())) == 500
    half = [
        signature([f"a{place}" for place in range(40)] + [f"{number}b{place}" for place in range(40)])
        for number in (1, 2)
    ]
    assert len(set(near_duplicates(np.stack(half), 0.7).tolist())) == 2
    assert len(set(near_duplicates(np.stack([signature([]), signature([])]), 0.7).tolist())) == 1


def test_a_preamble_that_many_prompts_share_does_not_make_them_alike() -> None:
    preamble = [f"p{place}" for place in range(600)]
    prompts = [preamble + [f"{number}x{place}" for place in range(60)] for number in range(100)]
    prompts += [[*prompt, "please"] for prompt in prompts[:50]]
    groups = near_duplicates(np.stack([signature(prompt) for prompt in prompts]), 0.7)
    assert len(set(groups[:100].tolist())) == 100
    assert (groups[100:] == groups[:50]).mean() > 0.9
    few = near_duplicates(np.stack([signature(prompt) for prompt in prompts[:15]]), 0.7)
    assert set(few.tolist()) == {0}, "their side decides little, so they may stay together"


def test_appending_keeps_what_is_there_and_adds_what_is_new(tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    one, two = write(tmp_path / "one.jsonl", pairs(30)), write(tmp_path / "two.jsonl", pairs(50) + pairs(5, False))
    build([one], out, BuildOptions(heldout=1))
    before = out.read_text()
    report = build([two], out, BuildOptions(heldout=0, append=True, negatives=0))
    assert (report.kept, report.known, report.dropped, report.written, report.heldout) == (30, 30, 5, 50, 30)
    assert out.read_text().startswith(before)
    report = build([two], out, BuildOptions(heldout=0, append=True))
    assert (report.known, report.written) == (50, 55)
    assert report.heldout == 35, "the five have prompts that are held out already"
    assert build([one], tmp_path / "new", BuildOptions(append=True)).written == 30
    array = json.dumps([json.loads(line) for line in before.splitlines()], indent=1)
    out.write_text(array)
    assert build([one], out, BuildOptions(append=True)).known == 30
    assert out.read_text() == before, "kept trees stand on a line each again"
    out.write_text("{}\n")
    with pytest.raises(ValueError, match=r"out.jsonl, line 1: expected messages"):
        build([one], out, BuildOptions(append=True))
    assert out.read_text() == "{}\n"


def test_data_sets_of_the_hub(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UnreadableInput, match=r"hub:a/b needs the package datasets: pip install 'apar\[data\]'"):
        build(["hub:a/b"], tmp_path / "out")
    asked = []

    def load_dataset(path, split, streaming):
        asked.append((path, split, streaming))
        if path == "no/network":
            raise ConnectionError("offline")
        return iter(pairs(3))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert build(["hub:a/b@test", "hub:a/b"], tmp_path / "out").written == 6
    assert asked == [("a/b", "test", True), ("a/b", "train", True)]
    assert {tree.source for tree in read_trees(tmp_path / "out")} == {"a/b"}
    with pytest.raises(UnreadableInput, match="cannot be read from the Hub: ConnectionError: offline"):
        build(["hub:no/network"], tmp_path / "out")


@needs_shared_data
def test_real_chat_data_comes_back(tmp_path) -> None:
    files = sorted(map(str, (SHARED / "chat").glob("*.jsonl")))
    report = build(files, tmp_path / "trees.jsonl")
    trees = read_trees(tmp_path / "trees.jsonl")
    count = 0
    for tree, record in zip(trees, chat_records(), strict=True):
        assert tree.tree.text == record["response"]
        assert tree.messages == [{"role": "user", "content": record["prompt"]}]
        assert tree.extra == {key: record[key] for key in ("dataset", "model", "id", "turn")}
        count += 1
    assert (report.written, report.malformed) == (count, 0)
