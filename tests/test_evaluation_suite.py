from pathlib import Path

import pytest
import yaml

from forgetting.errors import UserError
from forgetting.evaluation.command import evaluate_command
from forgetting.evaluation.suite import Column, Suite, load_suite


def write(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_main_has_the_papers_five_columns_in_each_protocol() -> None:
    for protocol in ("corrected", "published", "token_stop"):
        suite = load_suite("main", protocol)
        assert list(suite.columns) == ["TruthfulQA", "BoolQ", "LogiQA", "TydiQA", "ASDiv"]
        assert suite.protocol == protocol
        tydiqa = suite.columns["TydiQA"]
        assert len(tydiqa.tasks) == 9
        assert (tydiqa.shots, tydiqa.metric, tydiqa.fraction) == (1, "f1", 1.0)
        stem = {"corrected": "tydiqa_goldp_"}.get(protocol, f"tydiqa_{protocol}_")
        assert all(task.startswith(stem) for task in tydiqa.tasks)


def test_architectures_has_the_papers_four_columns() -> None:
    suite = load_suite("architectures")
    assert list(suite.columns) == ["IFEval", "ARC-Challenge", "LAMBADA", "Arithmetic"]
    assert len(suite.columns["Arithmetic"].tasks) == 10


@pytest.mark.parametrize(("suite", "column", "total", "published"), [
    ("main", "LogiQA", 651, 645), ("main", "BoolQ", 3270, 3238), ("architectures", "ARC-Challenge", 1172, 1161),
])  # fmt: skip
def test_published_takes_the_papers_document_counts(suite: str, column: str, total: int, published: int) -> None:
    assert load_suite(suite, "published").columns[column].limit(total) == published
    assert load_suite(suite).columns[column].limit(total) is None


def test_a_number_of_documents_never_exceeds_what_there_is() -> None:
    assert Column(["a"], documents=5).limit(3) == 3
    assert Column(["a"], documents=5, fraction=0.1).limit(30) == 5


def test_a_suite_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    name = write(tmp_path / "mine.yaml", {
        "columns": {"A": {"tasks": ["a"], "shots": 2}},
        "include_path": ["tasks"], "data_files": {"a_*": {"test": "a.jsonl"}},
    })  # fmt: skip
    suite = load_suite(name)
    assert (suite.name, suite.columns["A"].shots, suite.include_path) == ("mine", 2, [str(tmp_path / "tasks")])
    assert suite.files_of("a_x") == {"test": [str(tmp_path / "a.jsonl")]}
    assert suite.files_of("b") is None


def test_only_some_of_the_tasks() -> None:
    suite = load_suite("main")
    suite.only(["asdiv", "tydiqa_goldp_fi"])
    assert {name: column.tasks for name, column in suite.columns.items()} == {
        "TydiQA": ["tydiqa_goldp_fi"],
        "ASDiv": ["asdiv"],
    }
    with pytest.raises(UserError, match="The suite main has no task boolq"):
        suite.only(["boolq"])


@pytest.mark.parametrize(("content", "message"), [
    ({"columns": {"A": {"tasks": []}}}, "the column A has no task"),
    ({"columns": {"A": {}}}, "the column A has no task"),
    ({"columns": {"A": None}}, "the column A has no task"),
    ({"columns": {}}, "has no columns"),
    ({"columns": {"A": {"tasks": ["a"], "shot": 1}}}, "'shot' is not accepted"),
    ({"columns": {"A": {"tasks": "a"}}}, "Expected a <class 'list'>"),
    ({"columns": {"A": {"tasks": ["a"]}}, "batchsize": 3}, "batchsize"),
    ({"columns": {"A": {"tasks": ["a"], "fraction": 1.5}}}, r"fraction 1.5; it must be in \(0, 1\]"),
    ({"columns": {"A": {"tasks": ["a"], "documents": 0}}}, "documents 0; it must be at least 1"),
    ({"columns": {"A": {"tasks": ["a"]}, "B": {"tasks": ["a"]}}}, "the task a is in the columns A and B"),
    ({"columns": {"A": {"tasks": ["a"]}}, "data_files": {"a": {"test": "gone.jsonl"}}}, r"gone.jsonl, which does not"),
    ({"columns": {"A": {"tasks": ["a"]}}, "data_files": {"a": "gone.jsonl"}}, "must map splits to files"),
    ({"columns": {"A": {"tasks": ["a"]}}, "protocols": {"published": {"columns": {"B": {}}}}}, "changes the column B"),
    ({"columns": {"A": {"tasks": ["a"]}}, "protocols": {"published": {"limit": 3}}}, "not limit"),
])  # fmt: skip
def test_what_is_wrong_with_a_suite_is_said(tmp_path: Path, content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_suite(write(tmp_path / "suite.yaml", content), "published" if "protocols" in content else "corrected")


def test_unknown_suites_and_protocols_name_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no suite mian. Known: abilities, architectures, .*main"):
        load_suite("mian")
    with pytest.raises(UserError, match=r"no protocol publish. It has: corrected, published, token_stop"):
        load_suite("main", "publish")
    with pytest.raises(UserError, match=r"no protocol token_stop. It has: corrected, published"):
        load_suite("architectures", "token_stop")
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    with pytest.raises(UserError, match="empty or no mapping"):
        load_suite(str(empty))
    empty.write_text("a: [")
    with pytest.raises(UserError, match="not valid YAML"):
        load_suite(str(empty))


def test_the_command_lines_own_values_are_checked(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="the batch size is many; a number, auto or auto:N was expected"):
        evaluate_command([str(tiny_llama), "--tasks", "a", "--batch-size", "many"])
    with pytest.raises(UserError, match="documents 0; it must be at least 1"):
        evaluate_command([str(tiny_llama), "--tasks", "a", "--documents", "0"])
    with pytest.raises(UserError, match="--shots is only for --tasks without --suite"):
        evaluate_command([str(tiny_llama), "--shots", "2"])
    with pytest.raises(UserError, match="float8"):
        evaluate_command([str(tiny_llama), "--dtype", "float8"])
    with pytest.raises(UserError, match=r"Did you mean batch_size\?"):
        evaluate_command([str(tiny_llama), "--bach-size", "8"])


def test_a_suite_built_in_code_needs_no_file() -> None:
    assert Suite("x", {"A": Column(["a"])}).protocol == "corrected"
