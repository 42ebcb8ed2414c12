"""Files to rows: every kind of file, every kind of damage, with the line it stands on."""

import csv
import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lorawise.base.errors import ConfigError, DataError
from lorawise.data import records
from lorawise.data.read import read_rows
from lorawise.data.rows import Source
from lorawise.data.sources import is_hub_id

GOOD = {"text": "a"}


def lines(*values):
    return "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in values)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(rows):
    return [row.text for row in rows]


def problems(path, **options):
    """(line, cause) of every problem under skip; the file keeps one good row."""
    return [(p.line, p.code.removeprefix("data-")) for p in read_rows(path, on_bad="skip", **options).problems]


def test_jsonl_with_mark_crlf_and_blank_lines(tmp_path):
    path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + b'{"text": "a"}\r\n\r\n   \n{"text": "\xc3\xa9"}')
    rows = read_rows(path)
    assert texts(rows) == ["a", "é"]
    assert [row.where.line for row in rows] == [1, 4]


def test_a_json_array_knows_the_line_of_each_element(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([{"text": "a"}, {"text": "b"}, {"text": "c"}], indent=2))
    assert [(row.text, row.where.line) for row in read_rows(path)] == [("a", 2), ("b", 5), ("c", 8)]


def test_jsonl_under_the_name_json_and_an_array_under_jsonl_are_read(tmp_path):
    assert texts(read_rows(write(tmp_path / "a.json", lines({"text": "a"}, {"text": "b"})))) == ["a", "b"]
    assert texts(read_rows(write(tmp_path / "b.jsonl", ' [{"text": "a"},\n{"text": "b"}]'))) == ["a", "b"]


def test_csv_gives_the_line_a_record_starts_on(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([["prompt", "completion"], ["two\nlines", "x"], ["a,b", 'say "x"']])
    rows = read_rows(path)
    assert [(row.prompt, row.where.line) for row in rows] == [("two\nlines", 2), ("a,b", 4)]
    assert rows[1].completion == 'say "x"'


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.tsv", "\t"), ("a.csv", ",")])
def test_csv_with_another_separator_and_labels_as_numbers(tmp_path, name, mark):
    rows = read_rows(write(tmp_path / name, f"text{mark}label\r\ngood{mark}1\r\n\r\nbad{mark}0\r\n"))
    assert [(row.text, row.label, row.where.line) for row in rows] == [("good", 1, 2), ("bad", 0, 4)]


def test_a_long_csv_field_is_read_and_the_limit_of_others_left_as_it_was(tmp_path):
    before = csv.field_size_limit()
    rows = read_rows(write(tmp_path / "a.csv", "text\n" + "x" * (before + 1) + "\n"))
    assert len(rows[0].text) == before + 1
    assert csv.field_size_limit() == before


def test_conversations_in_a_csv_column_are_read_as_json(tmp_path):
    path = tmp_path / "a.csv"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([["messages"], [json.dumps(turns)]])
    assert read_rows(path)[0].messages == tuple(turns)


def test_parquet_rows_are_numbered_and_lose_the_nulls_that_structs_add(tmp_path):
    import pyarrow
    import pyarrow.parquet

    call = [{"function": {"name": name, "arguments": given}} for name, given in (("f", {"a": 1}), ("g", {"b": 2}))]
    chats = [
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": call}],
    ]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"messages": chats}), path)
    rows = read_rows(path)
    assert [row.where.line for row in rows] == [1, 2]
    assert set(rows[0].messages[1]) == {"role", "content"}
    assert [c["function"]["arguments"] for c in rows[1].messages[1]["tool_calls"]] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_gzipped_files_are_read(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' if "json" in name else b"text\na\n"))
    assert texts(read_rows(path)) == ["a"]


def test_damage_in_jsonl_is_found_on_its_line_and_reading_goes_on(tmp_path):
    deep = '{"text": ' + "[" * 5000 + "]" * 5000 + "}"
    inner = '{"text": ' + "[" * 100 + "]" * 100 + "}"
    content = lines(GOOD, '{"text": "b"', "3", '{"text": "\\ud800"}', deep, inner, '{"text": ' + "9" * 5000 + "}")
    path = write(tmp_path / "a.jsonl", content.encode() + b'{"text": "\xe9"}\n' + lines(GOOD).encode())
    assert problems(path) == [
        (2, "not-json"),
        (3, "not-object"),
        (4, "not-utf8"),
        (5, "too-deep"),
        (6, "too-deep"),
        (7, "not-json"),
        (8, "not-utf8"),
    ]
    assert len(read_rows(path, on_bad="skip")) == 2


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('[{"text": "a"},\n{"text": }]', (2, "not-json")),
        ('[{"text": "a"}\n{"text": "b"}]', (2, "not-json")),
        ('[{"text": "a"}', (1, "not-json")),
        ('[{"text": "a"},', (1, "not-json")),
        ('[{"text": "a"}]\n]', (2, "not-json")),
        ('[{"text": "a"},\n\n3]', (3, "not-object")),
    ],
)
def test_damage_in_an_array_is_found_on_its_line(tmp_path, content, found):
    assert problems(write(tmp_path / "a.json", content)) == [found]


def test_damage_in_csv_is_found_on_its_line_and_reading_goes_on(tmp_path):
    content = b'prompt,completion\na,b\na\n"x"y,b\n\xe9,b\n"l\nl",b\na,b,c\na,\n"open,b\n'
    path = write(tmp_path / "a.csv", content)
    found = problems(path)
    assert found == [
        (3, "not-csv"),
        (4, "not-csv"),
        (5, "not-utf8"),
        (8, "not-csv"),
        (9, "empty-content"),
        (10, "not-csv"),
    ]
    assert [row.where.line for row in read_rows(path, on_bad="skip")] == [2, 6]


@pytest.mark.parametrize("header", ["a,a", "a,", ",b"])
def test_a_csv_header_needs_one_name_a_column(tmp_path, header):
    with pytest.raises(DataError, match=r"a\.csv:1: the header"):
        read_rows(write(tmp_path / "a.csv", f"{header}\nx,y\n"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_endless_line_is_refused_in_little_memory_and_the_next_is_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(records, "MAX_LINE", 2**16)
    start = lines(GOOD) if name == "a.jsonl" else "text\na\n"
    path = write(tmp_path / name, start + "x" * 2**25 + "\n" + (lines(GOOD) if name == "a.jsonl" else "a\n"))
    tracemalloc.start()
    rows = read_rows(path, on_bad="skip")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.skipped == {"too-long": 1}
    assert [row.text for row in rows] == ["a", "a"]
    assert peak < 8 * 2**20


def test_an_array_beyond_the_limit_says_to_write_jsonl(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_ARRAY", 2**20)
    with pytest.raises(DataError, match="write it as JSONL"):
        read_rows(write(tmp_path / "a.json", "[" + " " * 2**20 + "]"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
        ("a.csv", "text\na\n".encode("utf-16"), "UTF-16"),
        ("a.json", '[{"text": "a"}]'.encode("utf-16"), "UTF-16"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"),
        ("a.jsonl.gz", gzip.compress(b"x" * 10_000)[:-12], "cannot be read"),
        ("a.parquet", b"PAR1 and no more", "not a whole Parquet file"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "is empty"),
        ("a.json", b"[]", "is empty"),
        ("a.csv", b"text\n", "is empty"),
        ("a.csv", b"", "is empty"),
    ],
)
def test_a_file_that_holds_no_rows_says_why(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        read_rows(write(tmp_path / name, content))


def test_all_problems_come_at_once_up_to_a_limit(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(*["{"] * 24, GOOD, {"messages": []}))
    with pytest.raises(DataError) as caught:
        read_rows(path)
    told = str(caught.value).splitlines()
    assert told[0].startswith(f"25 bad row(s) in {path}")
    assert sum(f"{path}:" in line for line in told[1:]) == 20
    assert any("and 5 more" in line for line in told)
    assert "one JSON object a line" in caught.value.cure
    assert "on_bad: skip" in caught.value.cure


def test_skipping_counts_by_cause_and_says_so(tmp_path):
    rows = read_rows(write(tmp_path / "a.jsonl", lines(GOOD, "{", "{", {"x": 1})), on_bad="skip")
    assert rows.skipped == {"not-json": 2, "unknown-format": 1}
    assert len(rows.problems) == 3
    (finding,) = [f for f in rows.findings if f.code == "data-skipped"]
    assert finding.message == "3 bad row(s) were skipped (2 not-json, 1 unknown-format); 1 are left"


def test_nothing_left_after_skipping_stops(tmp_path):
    with pytest.raises(DataError, match=r"no row of .* can be used"):
        read_rows(write(tmp_path / "a.jsonl", "{\n"), on_bad="skip")


def test_folders_and_patterns_are_read_in_the_order_of_names(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl", ".hidden/d.jsonl"):
        write(tmp_path / name, lines({"text": name}))
    write(tmp_path / "README.md", "no data")
    assert texts(read_rows(tmp_path)) == ["a.jsonl", "b.jsonl", "deep/c.jsonl"]
    assert texts(read_rows(str(tmp_path / "?.jsonl"))) == ["a.jsonl", "b.jsonl"]


def test_several_sources_keep_their_weight_and_format(tmp_path):
    a = write(tmp_path / "a.jsonl", lines({"text": "a", "label": "x"}))
    b = write(tmp_path / "b.jsonl", lines({"text": "b"}))
    rows = read_rows([Source(path=str(a), weight=2, format="text"), b])
    assert [(row.kind, row.weight) for row in rows] == [("text", 2.0), ("text", 1.0)]


def test_mixed_formats_are_noted_but_labels_stand_alone(tmp_path):
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    rows = read_rows(write(tmp_path / "a.jsonl", lines(GOOD, chat)))
    assert [f.code for f in rows.findings] == ["data-mixed-formats"]
    with pytest.raises(DataError, match="they train different heads"):
        read_rows(write(tmp_path / "b.jsonl", lines(GOOD, {"text": "a", "label": 1})))


def test_open_ended_conversations_and_repeated_rows_are_noted(tmp_path):
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    rows = read_rows(write(tmp_path / "a.jsonl", lines({"messages": turns}, {"messages": turns})))
    assert [(f.code, f.line) for f in rows.findings] == [("data-open-ended", 1), ("data-duplicates", 2)]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("trian.jsonl", "did you mean 'train.jsonl'"),
        ("none/a.jsonl", "no data in"),
        ("notes.txt", "not a kind of file"),
    ],
)
def test_a_source_that_is_not_there_names_the_nearest(tmp_path, path, said):
    write(tmp_path / "train.jsonl", lines(GOOD))
    write(tmp_path / "notes.txt", "x")
    with pytest.raises(DataError, match=said):
        read_rows(tmp_path / path)


def test_unknown_formats_and_ways_to_treat_bad_rows_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(GOOD))
    with pytest.raises(ConfigError, match="did you mean 'sharegpt'"):
        read_rows(path, format="sharegtp")
    with pytest.raises(ConfigError, match="did you mean 'skip'"):
        read_rows(path, on_bad="skp")
    with pytest.raises(DataError, match="no data source"):
        read_rows([])


def test_what_counts_as_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner/local", "x")
    ids = {
        "owner/name": True,
        "owner/local": False,
        "data/a.jsonl": False,
        "./a/b": False,
        "a/b/c": False,
        "name": False,
    }
    assert {path: is_hub_id(Source(path=path)) for path in ids} == ids


def test_a_hub_id_out_of_reach_gives_the_cure(tmp_path, monkeypatch):
    import datasets

    def refuse(*given, **named):
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match="could not be read from the hub: Couldn't reach") as caught:
        read_rows("owner/name")
    assert "offline" in caught.value.cure


def test_hub_rows_get_their_class_names_and_are_noted(monkeypatch):
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    made = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, subset, split: made)
    rows = read_rows("owner/name", on_bad="skip", format="classification")
    assert [(row.text, row.label, str(row.where)) for row in rows] == [
        ("a", "yes", "owner/name:1"),
        ("b", "no", "owner/name:2"),
    ]
    assert rows.skipped == {"missing-field": 1}
    assert "data-hub" in [f.code for f in rows.findings]


def test_reading_a_file_loads_neither_torch_nor_datasets(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(GOOD))
    code = (
        "import sys\nfrom lorawise.data.read import read_rows\n"
        f"read_rows({str(path)!r})\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_pipe_is_said_to_be_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("value", [datetime(2026, 11, 25), b"bytes", Decimal(1)])
def test_a_parquet_value_that_json_has_not_is_a_bad_row(value: object, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    table = pyarrow.Table.from_pylist([{"messages": turns, "tools": [{"type": "function", "since": value}]}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"rows.parquet:1: a field holds a (datetime|bytes|Decimal), not text"):
        read_rows(tmp_path / "rows.parquet")


@pytest.mark.parametrize("weight", [1e300, 10_001, 0.0])
def test_a_weight_beyond_sense_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="is not a number above 0"):
        Source(path="rows.jsonl", weight=weight)
