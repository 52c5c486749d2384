import csv
import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgetting.corpus.configuration import Source
from forgetting.corpus.files import is_local_data, local_files, read_rows
from forgetting.errors import UserError

ROWS = [{"q": "one\ntwo", "a": "None"}, {"q": 'say "hi", then\tgo', "a": "007"}, {"q": "é 😀", "a": "2024-01-01"}]


def source(path: Path | str | list[str], **changes: Any) -> Source:
    paths = path if isinstance(path, list) else str(path)
    return Source(**{"name": "S", "path": paths, "prompt": "{q}", "response": "{a}", **changes})


def read(path: Path, **changes: Any) -> list[dict[str, Any]]:
    return list(read_rows(source(path, **changes), path)[1])


def as_csv(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


CONTENT = {
    "rows.json": json.dumps(ROWS, indent=1),
    "flat.json": "\n".join(json.dumps(row) for row in ROWS),
    "rows.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n",
    "rows.csv": as_csv(ROWS),
}


@pytest.mark.parametrize("gzipped", [False, True])
@pytest.mark.parametrize("name", CONTENT)
def test_text_formats_give_back_exactly_what_was_written(tmp_path: Path, name: str, gzipped: bool) -> None:
    path = tmp_path / (name + ".gz" if gzipped else name)
    content = CONTENT[name].encode()
    path.write_bytes(gzip.compress(content) if gzipped else content)
    assert read(path) == ROWS


def test_parquet_and_quoted_tsv(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == ROWS
    (tmp_path / "rows.tsv").write_text(as_csv(ROWS, "\t"), newline="")
    assert read(tmp_path / "rows.tsv", quoted=True) == ROWS


SEPARATED = {"semicolon": ";", "tab": "\t", "bar": "|", "comma": ","}


@pytest.mark.parametrize("separator", SEPARATED.values(), ids=SEPARATED)
@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "x.csv.gz"])
def test_fields_between_other_separators_are_told_apart(tmp_path: Path, name: str, separator: str) -> None:
    text = as_csv(ROWS, separator).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert read(tmp_path / name, quoted=True) == ROWS


def test_the_usual_separator_is_kept_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("q,a;b\n1;2,3\n")
    assert read(tmp_path / "x.csv") == [{"q": "1;2", "a;b": "3"}]
    (tmp_path / "one.csv").write_text('messages\n"[1; 2, 3]"\n')
    assert read(tmp_path / "one.csv") == [{"messages": "[1; 2, 3]"}]
    (tmp_path / "one.tsv").write_text('["a", "b"]\n["c", "d"]\n')
    assert read(tmp_path / "one.tsv", column_names=["messages"]) == [
        {"messages": text} for text in ('["a", "b"]', '["c", "d"]')
    ]
    (tmp_path / "two.tsv").write_text("x;y\nz;w\n")
    assert read(tmp_path / "two.tsv", column_names=["q", "a"]) == [{"q": "x", "a": "y"}, {"q": "z", "a": "w"}]


def test_byte_order_mark_and_other_suffixes(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(b"\xef\xbb\xbf" + CONTENT["rows.jsonl"].encode())
    assert read(tmp_path / "data.txt", format="jsonl") == ROWS
    with pytest.raises(UserError, match=r"format of .*data.txt is not clear from its suffix"):
        read(tmp_path / "data.txt")


def test_flan_tsv_has_no_header_no_quoting_and_escaped_newlines(tmp_path: Path) -> None:
    path = tmp_path / "qasc.tsv"
    path.write_text('"Who?" she said\\nOptions:\\n- (A) x\t(A)\tBecause "so.\nNext\t(B)\tC:\\\\new\n')
    names = {"column_names": ["question", "answer", "rationale"]}
    rows = read(path, **names, unescape=True)
    assert rows[0] == {"question": '"Who?" she said\nOptions:\n- (A) x', "answer": "(A)", "rationale": 'Because "so.'}
    assert rows[1]["rationale"] == "C:\\new"
    assert read(path, **names)[0]["question"] == '"Who?" she said\\nOptions:\\n- (A) x'


def test_rows_of_json_may_differ_in_their_keys(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"q": "x", "a": "y"}\n{"q": "z", "b": [1]}\n')
    columns, rows = read_rows(source(tmp_path / "x.jsonl"), tmp_path / "x.jsonl")
    assert columns == ["q", "a", "b"]
    assert list(rows)[1] == {"q": "z", "a": None, "b": [1]}


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.fixed_dictionaries({"q": TEXT, "a": TEXT}), min_size=1))
def test_any_text_survives_json_lines(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> None:
    path = tmp_path_factory.mktemp("any") / "x.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="\n")
    assert read(path) == rows


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        ("x.jsonl", b'{"q": 1}\n{"q": ', {}, r"x.jsonl, line 2: not valid JSON"),
        ("x.json", b'[{"q": 1}, ', {}, r"not valid JSON .*cut short"),
        ("x.json", b'[{"q": 1}, 3]', {}, r"item 2: found a int, expected a JSON object"),
        ("x.json", b"[]", {}, "has no rows"),
        ("x.jsonl", b"\xff\xfe{}", {}, "not UTF-8 text"),
        ("x.jsonl.gz", gzip.compress(b'{"q": 1}\n' * 99, mtime=0)[:-9], {}, "not a complete gzip file"),
        ("x.jsonl.gz", b"no gzip", {}, "not a complete gzip file"),
        ("x.parquet", b"PAR1 no", {}, "not a Parquet file"),
        ("x.tsv", b"a\tb\nc\n", {"column_names": ["q", "a"]}, r"line 2: found 1 fields .*tabs, expected 2 \(q, a\)"),
        ("x.tsv", b"a\tb\tc\n", {"column_names": ["q", "a"]}, r"line 1: found 3 fields .*, expected 2"),
        ("x.csv", b"q;a;b\n1;2,3\n", {}, r"line 2: found 2 fields between commas, expected 1 \(q;a;b\)"),
        ("x.csv", b"q,a\nx;y;z\n", {}, r"seem to stand between semicolons, which do not cut each .* into 2 fields"),
        (
            "x.csv",
            b"x;y;z\n",
            {"column_names": ["q", "a"]},
            r"between semicolons, which do not cut each .* into 2 fields",
        ),
        ("x.csv", b"q,a\n1,2\n", {"column_names": ["q", "A"]}, r"first line is a header \(q, a\).*: leave it out"),
        ("x.tsv", b"q\ta\n1\t2\n", {"column_names": ["q", "a"]}, r"first line is a header"),
        ("x.json", b'{"x1": {"q": 1}, "x2": {"q": 2}}', {}, r"one JSON object that holds 2 rows by name \('x1', 'x2'"),
        ("x.csv", b'q,a\n"open', {}, "not valid CSV .*quoted: false"),
        ("x.jsonl", b'{"q": 1}', {"unescape": True}, "unescape is for CSV and TSV files, but .*x.jsonl is JSONL"),
        ("x.jsonl", b'{"q": 1}', {"column_names": ["q"]}, "column_names is for CSV and TSV files"),
    ],
)
def test_a_damaged_or_wrong_file_is_one_clear_error(
    tmp_path: Path, name: str, content: bytes, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name, **changes)
    assert str(caught.value).startswith("Source 'S': ")
    assert "\n" not in str(caught.value)


def test_folders_patterns_and_lists_in_a_fixed_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.jsonl", "b/1.jsonl", "a.jsonl", ".hidden.jsonl", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    relative = lambda path: [str(file.relative_to(tmp_path)) for file in local_files(source(path)) or []]  # noqa: E731
    assert relative(tmp_path) == ["a.jsonl", "b/1.jsonl", "b/2.jsonl"]
    assert relative(str(tmp_path / "b" / "*.jsonl")) == ["b/1.jsonl", "b/2.jsonl"]
    assert relative([str(tmp_path / "b"), str(tmp_path / "a.jsonl")]) == ["b/1.jsonl", "b/2.jsonl", "a.jsonl"]
    monkeypatch.chdir(tmp_path)
    assert local_files(source("a.jsonl")) == [Path("a.jsonl")]
    assert local_files(source("org/data-set")) is None


def test_what_is_local_and_what_is_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    assert is_local_data("org/here")
    assert not is_local_data("org/elsewhere")
    assert not is_local_data("squad")
    assert all(map(is_local_data, ["x.json", "./x", "/x/y", "a/b/c", "*.tsv", "~/x"]))


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("missing.json", {}, "the file missing.json does not exist"),
        ("empty.json", {}, "empty.json is empty"),
        ("*.tsv", {}, r"no file matches \*.tsv"),
        ("folder", {}, "the folder folder holds no .json"),
        ("full.json", {"revision": "main"}, "revision is for data sets on the hub, but its path is local"),
        ("full.json", {"split": "test"}, "split 'test' is for data sets on the hub, but its path is local"),
        ("~nobody-of-this-name/x.json", {}, "without '~'"),
        ("/x\0y", {}, "does not exist"),
        ("latin", {}, "is not UTF-8. Rename it"),
        ("org/name", {"column_names": ["q"]}, "column_names is for CSV and TSV files, but org/name is on the hub"),
    ],
)
def test_missing_and_empty_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").touch()
    (tmp_path / "full.json").write_text("[]")
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / os.fsdecode(b"\xff.json")).write_text("{}")
    with pytest.raises(UserError, match=message):
        local_files(source(path, **changes))
