"""What an evaluation keeps, what it runs again, and what it never throws away."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluation_files import write_bigram_model, write_lines, write_local_tasks, write_suite
from processes import Forked, finish, in_process
from test_evaluation_run import write_run

from forgetting.artifacts import read_json
from forgetting.cli import main
from forgetting.errors import UserError


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bigram_model(tmp_path_factory.mktemp("base") / "bigram")


def results(folder: Path) -> dict[str, Any]:
    """The results files in a folder by their suite."""
    found = [read_json(file) for file in folder.glob("results*.json")]
    return {content["suite"]: content for content in found}


def evaluate(target: Path, suite: Path, *options: str) -> None:
    main(["evaluate", str(target), "--suite", str(suite), "--device", "cpu", *options])


def kept(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The tasks that were not run again, since this was last asked."""
    lines = capsys.readouterr().out.splitlines()
    return [line.split()[1].removesuffix(":") for line in lines if line.endswith("(kept)")]


def test_suites_and_single_tasks_on_one_run_leave_each_others_results(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first", "second", "third"])
    one = write_suite(tmp_path / "one.yaml", ["first", "second"], tasks)
    two = write_suite(tmp_path / "two.yaml", ["second", "third"], tasks)
    run = write_run(tmp_path / "run", base)
    evaluate(run, one)
    before = results(run)["one"]
    evaluate(run, two)
    main(["evaluate", str(run), "--tasks", "third", "--include-path", str(tasks), "--batch-size", "4"])
    main(["evaluate", str(run), "--tasks", "first", "--include-path", str(tasks), "--batch-size", "4"])
    assert len(results(run)) == 4
    assert results(run)["one"] == before
    kept(capsys)
    evaluate(run, one)
    evaluate(run, two)
    assert kept(capsys) == ["first", "second", "second", "third"]
    assert results(run)["one"]["columns"] == before["columns"]


def write_fragile(folder: Path, names: list[str], script: Path) -> Path:
    """Tasks that run a script, if it is there, for each document `doc`: nothing else about them changes with it."""
    tasks = write_local_tasks(folder, names)
    (tasks / "fragile.py").write_text(
        "import os, pathlib, signal\n"
        "def text(doc):\n"
        f"    script = pathlib.Path({str(script)!r})\n"
        "    if script.exists():\n"
        "        exec(script.read_text(), {'doc': doc, 'os': os, 'signal': signal})\n"
        "    return doc['text'] + '\\nAnswer:'\n"
    )
    for name in names:
        content = yaml.safe_load((tasks / f"{name}.yaml").read_text())
        del content["doc_to_text"]
        (tasks / f"{name}.yaml").write_text(yaml.safe_dump(content) + "doc_to_text: !function fragile.text\n")
    return tasks


def failing(task: str) -> str:
    return f"if doc['text'] == '{task} 5': raise ZeroDivisionError('no luck')\n"


def deadly(task: str) -> str:
    return f"if doc['text'] == '{task} 5': os.kill(os.getpid(), signal.SIGKILL)\n"


@pytest.mark.slow
def test_whatever_fails_and_is_killed_nothing_finished_is_run_again(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real kills: the first task fails and is run again, the second is finished, and twice the third is killed."""
    names, script = ["first", "second", "third"], tmp_path / "script.py"
    suite = write_suite(tmp_path / "suite.yaml", names, write_fragile(tmp_path / "tasks", names, script))
    run = write_run(tmp_path / "run", base)
    command = ["evaluate", str(run), "--suite", str(suite), "--device", "cpu"]
    for text in (failing("first") + deadly("third"), deadly("third")):
        script.write_text(text)
        assert in_process(command) == -signal.SIGKILL
    script.unlink()
    evaluate(run, suite)
    assert kept(capsys) == ["first", "second"]
    assert results(run)["suite"]["average"] is not None


def test_a_failed_task_never_replaces_a_finished_one(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script.py"
    tasks = write_fragile(tmp_path / "tasks", ["first", "second"], script)
    suite, run = write_suite(tmp_path / "suite.yaml", ["first", "second"], tasks), write_run(tmp_path / "run", base)
    evaluate(run, suite)
    before = results(run)["suite"]
    script.write_text(failing("second"))
    with pytest.raises(UserError, match=r"1 of 2 tasks failed: second \(.*no luck\).* finished second: it was left as"):
        evaluate(run, suite, "--seed", "1")
    assert results(run)["suite"] == before
    with pytest.raises(UserError, match=r"no luck\); what an earlier launch finished of second stands"):
        evaluate(run, suite, "--fresh")
    assert results(run)["suite"]["columns"] == before["columns"]
    script.unlink()
    kept(capsys)
    evaluate(run, suite, "--seed", "1")
    assert kept(capsys) == ["first"]


def test_other_settings_replace_results_with_a_word_and_the_first_ones_come_back(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first"])
    suite, run = write_suite(tmp_path / "suite.yaml", ["first"], tasks), write_run(tmp_path / "run", base)
    evaluate(run, suite)
    before = results(run)["suite"]
    assert "held another evaluation" not in capsys.readouterr().out
    evaluate(run, suite, "--seed", "1", "--dtype", "bfloat16")
    assert "held another evaluation (dtype float32 → bfloat16, seed 42 → 1)" in capsys.readouterr().out
    evaluate(run, suite)
    assert kept(capsys) == ["first"]
    assert results(run)["suite"] == before


def test_results_say_how_each_task_was_evaluated(tmp_path: Path, base: Path) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first"])
    suite, run = write_suite(tmp_path / "suite.yaml", ["first"], tasks), write_run(tmp_path / "run", base)
    evaluate(run, suite, "--seed", "7", "--batch-size", "3", "--merge")
    content = results(run)["suite"]
    entry = content["tasks"]["first"]
    settings = {key: entry["settings"][key] for key in ("dtype", "seed", "batch_size", "merged", "device")}
    assert settings == {"dtype": "float32", "seed": 7, "batch_size": "3", "merged": True, "device": "cpu"}
    assert entry["settings"]["versions"] == content["versions"]
    assert (entry["device"][-3:], len(entry["data"]["hash"])) == ("CPU", 64)
    assert (content["dtype"], content["seed"], content["batch_size"]) == ("float32", 7, "3")
    assert (content["target"]["merged"], content["target"]["four_bit"]) == (True, False)


# --- what a number depends on


def few_shot(folder: Path) -> Path:
    """A task whose few-shot examples are a file of their own, and whose score is in a module next to its module."""
    tasks = write_local_tasks(folder, ["first"])
    shown = write_lines(folder / "shown.jsonl", [{"text": f"shown {i}", "label": 1} for i in range(5)])
    content = yaml.safe_load((tasks / "first.yaml").read_text())
    content["dataset_kwargs"]["data_files"]["train"] = str(shown)
    content |= {"training_split": "train", "num_fewshot": 2}
    (tasks / "helper_of_first.py").write_text("FACTOR = 1\n")
    (tasks / "score_of_first.py").write_text(
        "import pathlib\n"
        "def score(doc, results):\n"
        "    factor = {}\n"
        "    exec((pathlib.Path(__file__).parent / 'helper_of_first.py').read_text(), factor)\n"
        "    return {'acc': factor['FACTOR'] * float(doc['label'] == 1)}\n"
    )
    text = yaml.safe_dump(content) + "process_results: !function score_of_first.score\n"
    (tasks / "first.yaml").write_text(text)
    return tasks


def changed_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = read_json(path)
    change(content)
    path.write_text(json.dumps(content))


def other_few_shot_examples(base: Path, tasks: Path) -> None:
    write_lines(tasks / "shown.jsonl", [{"text": f"other {i}", "label": 2} for i in range(5)])


def other_tokenizer(base: Path, tasks: Path) -> None:
    changed_json(base / "tokenizer.json", lambda content: content.update(normalizer={"type": "Lowercase"}))


def other_generation(base: Path, tasks: Path) -> None:
    changed_json(base / "generation_config.json", lambda content: content.update(repetition_penalty=2.0))


def other_template(base: Path, tasks: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ messages }}")


def other_helper(base: Path, tasks: Path) -> None:
    (tasks / "helper_of_first.py").write_text("FACTOR = 0\n")


@pytest.mark.parametrize(
    "change", [other_few_shot_examples, other_tokenizer, other_generation, other_template, other_helper]
)
def test_what_a_number_depends_on_is_noticed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path, Path], None]
) -> None:
    model = write_bigram_model(tmp_path / "model")
    tasks = few_shot(tmp_path / "tasks")
    suite = write_suite(tmp_path / "suite.yaml", ["first"], tasks)
    out = ("--output", str(tmp_path / "out"))
    evaluate(model, suite, *out)
    (model / "README.md").write_text("Nothing depends on this.")
    kept(capsys)
    evaluate(model, suite, *out)
    assert kept(capsys) == ["first"]
    change(model, tasks)
    evaluate(model, suite, *out)
    assert kept(capsys) == []


# --- damaged files and two at once


@pytest.mark.parametrize("damage", ["", "[]", "{}\n", "cut", "changed", "garbage"])
def test_damaged_samples_are_made_again_and_not_compared(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first"])
    suite, run = write_suite(tmp_path / "suite.yaml", ["first"], tasks), write_run(tmp_path / "run", base)
    evaluate(run, suite)
    before = results(run)["suite"]
    (file,) = run.glob("samples/**/*.jsonl")
    sound = file.read_bytes()
    damaged = {
        "cut": sound[:-20], "changed": sound.replace(b"first 3", b"first 4").replace(b'"acc": 0.0', b'"acc": 1.0', 1),
        "garbage": b"\xff\x00" * 50,
    }.get(damage, damage.encode())  # fmt: skip
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=rf"{file} is damaged.*Evaluate again: python -m forgetting evaluate {run}"):
        main(["compare", str(run), str(run)])
    kept(capsys)
    evaluate(run, suite)
    assert kept(capsys) == []
    assert results(run)["suite"]["columns"] == before["columns"]
    main(["compare", str(run), str(run), "--resamples", "10"])
    file.unlink()
    with pytest.raises(UserError, match=rf"{file} is missing. Evaluate again"):
        main(["compare", str(run), str(run)])


@pytest.mark.parametrize("content", ["[]", "{}", '{"tasks": 3}', "{", '{"format": 1, "tasks": {"first": []}}'])
def test_a_damaged_results_file_is_written_anew_and_not_compared(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first"])
    suite, run = write_suite(tmp_path / "suite.yaml", ["first"], tasks), write_run(tmp_path / "run", base)
    evaluate(run, suite)
    (file,) = run.glob("results*.json")
    sound = file.read_text()
    file.write_text(content)
    with pytest.raises(
        UserError, match=rf"{file} .*Evaluate again: python -m forgetting evaluate {run} --suite <the file of suite>"
    ):
        main(["compare", str(run), str(run)])
    kept(capsys)
    evaluate(run, suite)
    assert kept(capsys) == ["first"]
    assert file.read_text() == sound


@pytest.mark.slow
def test_two_evaluations_of_one_run_at_once_both_end_right(tmp_path: Path, base: Path) -> None:
    names = ["first", "second", "third"]
    tasks = write_local_tasks(tmp_path / "tasks", names)
    suite, run = write_suite(tmp_path / "suite.yaml", names, tasks), write_run(tmp_path / "run", base)
    command = ["evaluate", str(run), "--suite", str(suite), "--device", "cpu"]
    ended = finish(*(Forked(command) for _ in range(2)))
    assert [status for status, _ in ended] == [0, 0], ended
    together = results(run)["suite"]
    evaluate(run, suite, "--output", str(tmp_path / "alone"))
    assert together["columns"] == results(tmp_path / "alone")["suite"]["columns"]
    main(["compare", str(run), str(tmp_path / "alone"), "--resamples", "10"])
    assert not list(run.rglob("*.partial"))


def test_a_kept_task_fills_a_column_by_that_column_s_metric(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished for one suite, kept for another that reports another metric of it."""
    tasks = write_local_tasks(tmp_path / "tasks", ["first"])
    configuration = yaml.safe_load((tasks / "first.yaml").read_text())
    configuration["metric_list"] = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
    ]
    (tasks / "first.yaml").write_text(yaml.safe_dump(configuration))
    suites = {}
    for metric in ("acc", "acc_norm"):
        suites[metric] = write_suite(tmp_path / f"{metric}.yaml", ["first"], tasks)
        content = yaml.safe_load(suites[metric].read_text())
        for column in content["columns"].values():
            column["metric"] = metric
        suites[metric].write_text(yaml.safe_dump(content))
    run = write_run(tmp_path / "run", base)
    evaluate(run, suites["acc"])
    kept(capsys)
    evaluate(run, suites["acc_norm"])
    assert kept(capsys) == ["first"]
    found = results(run)["acc_norm"]
    assert found["tasks"]["first"]["metric"] == "acc_norm"
    (column,) = found["columns"].values()
    assert column["value"] == 100 * found["tasks"]["first"]["metrics"]["acc_norm"]


def test_another_suite_of_the_same_name_does_not_replace_results(tmp_path: Path, base: Path) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["first", "second"])
    suites = []
    for number, task in enumerate(["first", "second"]):
        (tmp_path / str(number)).mkdir()
        suites.append(write_suite(tmp_path / str(number) / "mine.yaml", [task], tasks))
    run = write_run(tmp_path / "run", base)
    evaluate(run, suites[0])
    before = (run / "results.mine.json").read_bytes()
    with pytest.raises(UserError, match=r"another suite called mine, with the columns .* another `name:`"):
        evaluate(run, suites[1])
    assert (run / "results.mine.json").read_bytes() == before
