import importlib.util
import json
from pathlib import Path

import lm_eval
import pytest
from evaluation_files import write_benchmarks, write_bigram_model, write_data_files, write_lines, write_local_tasks

import forgetting.evaluation.evaluate as evaluation
from forgetting.errors import UserError
from forgetting.evaluation.command import evaluate_command
from forgetting.evaluation.suite import Column, Suite
from forgetting.evaluation.tasks import PreparedTask, prepare_tasks

HARNESS = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bigram_model(tmp_path_factory.mktemp("base") / "bigram")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail when a model is loaded: the errors of this file come before."""

    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(evaluation, "load_model", load)


def one(task: str, folder: str, files: dict[str, list[str]] | None = None, **column: object) -> PreparedTask:
    """Prepare one task of the harness without reading its whole index."""
    suite = Suite(
        "x", {"A": Column([task], **column)}, include_path=[str(HARNESS / folder)],  # pyright: ignore[reportArgumentType]
        data_files={task: files} if files else {},
    )  # fmt: skip
    (prepared,) = prepare_tasks(suite, {"pretrained": "none"})
    return prepared


@pytest.mark.slow
@pytest.mark.usefixtures("no_model")
def test_a_wrong_task_name_is_said_with_near_ones_before_the_model_is_loaded(base: Path) -> None:
    with pytest.raises(UserError, match=r"no task bolq, neither in the harness nor .* Did you mean boolq"):
        evaluate_command([str(base), "--tasks", "bolq"])


@pytest.mark.usefixtures("no_model")
def test_missing_files_are_said_before_the_model_is_loaded(base: Path, tmp_path: Path) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first"])
    (tasks / "first.jsonl").unlink()
    with pytest.raises(UserError, match=r"data of the task first could not be loaded: FileNotFoundError.*first.jsonl"):
        evaluate_command([str(base), "--tasks", "first", "--include-path", str(tasks)])
    with pytest.raises(UserError, match=r"folder of tasks .*gone does not exist"):
        evaluate_command([str(base), "--tasks", "first", "--include-path", str(tmp_path / "gone")])
    data = write_data_files(tmp_path / "data.yaml", {"first": {"test": "gone.jsonl"}})
    with pytest.raises(UserError, match=r"data_files.first.test names .*gone.jsonl, which does not exist"):
        evaluate_command([str(base), "--tasks", "first", "--include-path", str(tasks), "--data-files", str(data)])
    suite = tmp_path / "suite.yaml"
    suite.write_text("columns: {A: {tasks: []}}")
    with pytest.raises(UserError, match="the column A has no task"):
        evaluate_command([str(base), "--suite", str(suite)])


def test_a_task_on_the_hub_without_a_connection_names_the_way_out() -> None:
    with pytest.raises(UserError, match=r"data of the task asdiv could not be loaded.*data_files.asdiv.<split>"):
        one("asdiv", "asdiv")


def test_local_files_replace_a_tasks_data(tmp_path: Path) -> None:
    files = write_benchmarks(tmp_path)
    prepared = one("arc_challenge", "arc", {"test": [files["arc_challenge"]["test"]]}, fraction=0.5)
    assert (prepared.num_documents, prepared.limit, prepared.metric, prepared.filter) == (9, 5, "acc", "none")
    assert prepared.task.config.dataset_path == "json"
    assert prepared.data["path"] == "json"
    assert prepared.data["revision"] is None
    same = one("arc_challenge", "arc", {"test": [files["arc_challenge"]["test"]]})
    assert same.data["hash"] == prepared.data["hash"]


def test_the_split_that_is_evaluated_must_be_among_the_local_files(tmp_path: Path) -> None:
    file = str(write_lines(tmp_path / "a.jsonl", [{"question": "x"}]))
    with pytest.raises(UserError, match=r"gives validation, but the task also needs its split test"):
        one("arc_challenge", "arc", {"validation": [file]})
    with pytest.raises(UserError, match=r"gives test, but the task also needs its split train"):
        one("arc_challenge", "arc", {"test": [file]}, shots=1)
    (tmp_path / "a.xml").touch()
    with pytest.raises(UserError, match=r"files of one kind \(.json, .*were expected, not .xml"):
        one("arc_challenge", "arc", {"test": [str(tmp_path / "a.xml")]})
    with pytest.raises(UserError, match="truthfulqa is a group; give the files of its tasks"):
        one("truthfulqa", "truthfulqa", {"validation": [file]})


def test_metrics_filters_and_shots_that_a_task_has_not(tmp_path: Path) -> None:
    files = write_benchmarks(tmp_path)
    arc = {"test": [files["arc_challenge"]["test"]]}
    with pytest.raises(UserError, match="wants the metric f1, but arc_challenge has acc, acc_norm"):
        one("arc_challenge", "arc", arc, metric="f1")
    with pytest.raises(UserError, match="wants the filter strict, but arc_challenge has none"):
        one("arc_challenge", "arc", arc, filter="strict")
    truthful = {"validation": [files["truthfulqa_mc2"]["validation"]]}
    with pytest.raises(UserError, match="fixes its few-shot examples at 0; the suite asks for 2"):
        one("truthfulqa_mc2", "truthfulqa", truthful, shots=2)


def test_the_first_metric_of_which_more_is_better_is_taken(tmp_path: Path) -> None:
    files = write_benchmarks(tmp_path)
    assert one("lambada_openai", "lambada", {"test": [files["lambada_openai"]["test"]]}).metric == "acc"


def test_logiqa_reads_its_authors_text_files(tmp_path: Path) -> None:
    prepared = one("logiqa_text", "logiqa", {"test": [write_benchmarks(tmp_path)["logiqa_text"]["test"]]})
    document = prepared.task.eval_docs[1]
    assert document == {
        "label": "b",
        "context": "All 1 are odd. Some are not.",
        "question": "Which holds?",
        "options": ["one", "two", "three", "1"],
    }
    assert prepared.task.doc_to_text(document).startswith(
        "Passage: All 1 are odd. Some are not.\nQuestion: Which holds?"
    )
    assert prepared.task.doc_to_target(document) == 1
    rows = write_lines(tmp_path / "rows.jsonl", [document])
    assert one("logiqa_text", "logiqa", {"test": [str(rows)]}).task.eval_docs[0] == document


def test_ifeval_without_its_packages_or_its_data_gives_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "langdetect" else object())
    with pytest.raises(UserError, match=r"not installed \(langdetect\).*pip install 'lm-eval\[ifeval\]'"):
        one("ifeval", "ifeval")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("nltk.data.path", [])
    with pytest.raises(UserError, match=r"python -m nltk.downloader punkt_tab"):
        one("ifeval", "ifeval")


def test_ifeval_runs_on_a_local_file(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real task, on an instruction that needs no sentence splitter: punkt_tab itself is an empty folder here."""
    for package in ("langdetect", "immutabledict"):
        pytest.importorskip(package, reason="IFEval needs the harness's extra: pip install 'lm-eval[ifeval]'")
    (tmp_path / "nltk/tokenizers/punkt_tab").mkdir(parents=True)
    monkeypatch.setattr("nltk.data.path", [str(tmp_path / "nltk")])
    rows = [
        {"key": i, "prompt": "Say Q.", "instruction_id_list": [name], "kwargs": [{}]}
        for i, name in enumerate(["punctuation:no_comma", "startend:quotation"])
    ]
    data = write_data_files(tmp_path / "data.yaml", {"ifeval": {"train": str(write_lines(tmp_path / "i.jsonl", rows))}})
    suite = tmp_path / "suite.yaml"
    suite.write_text("columns: {IFEval: {tasks: [ifeval], metric: prompt_level_strict_acc, shots: 0}}")
    evaluate_command([
        str(base), "--suite", str(suite), "--include-path", str(HARNESS / "ifeval"), "--data-files", str(data),
        "--batch-size", "1", "--output", str(tmp_path),
    ])  # fmt: skip
    assert json.loads((tmp_path / "results.suite.json").read_text())["columns"]["IFEval"]["value"] in (0, 50)
