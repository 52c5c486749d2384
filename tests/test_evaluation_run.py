import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import write_backbone
from evaluation_files import results_file, task_records, write_bigram_model, write_local_tasks
from peft import LoraConfig, get_peft_model
from processes import Forked, in_process
from transformers import AutoModelForCausalLM

from forgetting import progress
from forgetting.errors import UserError
from forgetting.evaluation.command import evaluate_command
from forgetting.evaluation.naming import base_folder, name_of_tasks, results_name

FIVE = ["first", "second", "third", "fourth", "fifth"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bigram_model(tmp_path_factory.mktemp("base") / "bigram")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_tasks(tmp_path_factory.mktemp("tasks"), FIVE)


def write_run(folder: Path, base: Path, scale: float = 0.5, layers: Sequence[str] = ("o_proj", "down_proj")) -> Path:
    """A run folder as `fit` leaves it: an adapter that changes the logits."""
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=list(layers)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    model.save_pretrained(folder / "adapter")
    (folder / "fit.yaml").write_text("model: {revision: null, dtype: float32}\n")
    return folder


def evaluate(target: Path, tasks: Path, *options: str, names: list[str] = FIVE) -> dict[str, Any]:
    evaluate_command([str(target), "--tasks", *names, "--include-path", str(tasks), "--batch-size", "4", *options])
    name = results_name(name_of_tasks(names, None), "corrected")
    return json.loads((target / name).read_text()) if (target / name).exists() else {}


def loglikelihoods(folder: Path) -> list[Any]:
    return [record["answer"] for record in task_records(folder, "first")]


def numbers(content: dict[str, Any]) -> dict[str, Any]:
    """Results without what may differ between launches."""
    tasks = {
        name: {key: value for key, value in entry.items() if key != "seconds"}
        for name, entry in content["tasks"].items()
    }
    return {**content, "tasks": tasks, "seconds": None}


def test_a_run_is_evaluated_with_its_adapter_and_a_model_folder_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path, tasks: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "runs/x/seed-0", base)
    with_adapter = evaluate(run, tasks)
    evaluate(base, tasks)
    base_results = tmp_path / "runs" / base_folder(str(base))
    without = json.loads(results_file(base_results).read_text())
    assert with_adapter["target"]["kind"] == "run"
    assert with_adapter["target"]["base"]["hash"] == without["target"]["base"]["hash"]
    assert with_adapter["target"]["adapter"]["path"] == str(run / "adapter")
    assert without["target"] | {"base": None} == {
        "kind": "folder", "name": str(base), "base": None, "adapter": None, "merged": False, "four_bit": False,
    }  # fmt: skip
    assert loglikelihoods(run) != loglikelihoods(base_results)
    assert with_adapter["average"] == pytest.approx(sum(c["value"] for c in with_adapter["columns"].values()) / 5)
    entry = with_adapter["tasks"]["first"]
    assert (entry["status"], entry["documents"], entry["documents_total"], entry["shots"]) == ("ok", 12, 12, 0)
    assert (with_adapter["dtype"], without["dtype"]) == ("float32", "auto")


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt-neo"])
def test_every_family_is_evaluated_with_its_adapter(tmp_path: Path, tasks: Path, family: str) -> None:
    base = write_backbone(tmp_path / "base", family)
    layers = ["c_fc"] if family == "gpt-neo" else ["down_proj"]
    content = evaluate(write_run(tmp_path / "run", base, layers=layers), tasks, names=["first"])
    assert content["tasks"]["first"]["status"] == "ok"


def test_a_hub_model_that_is_not_there_is_said_first(tasks: Path) -> None:
    with pytest.raises(UserError, match="The model nobody/nothing is not in the local cache"):
        evaluate_command(["nobody/nothing", "--tasks", "first", "--include-path", str(tasks)])


def test_records_hold_the_score_of_every_document_and_the_whole_document_only_on_request(
    tmp_path: Path, base: Path, tasks: Path
) -> None:
    run = write_run(tmp_path / "run", base)
    content = evaluate(run, tasks, names=["first"])
    records = task_records(run, "first")
    assert [record["document"] for record in records] == list(range(12))
    assert "prompt" not in records[0]
    mean = sum(record["metrics"]["acc"] for record in records) / 12
    assert mean == pytest.approx(content["tasks"]["first"]["metrics"]["acc"])
    evaluate(run, tasks, "--fresh", "--samples", names=["first"])
    record = task_records(run, "first")[0]
    assert record["doc"] == {"text": "first 0", "label": 0}
    assert record["prompt"][0] == "first 0\nAnswer:"


def test_merged_adapter_gives_the_same_numbers(tmp_path: Path, base: Path, tasks: Path) -> None:
    run = write_run(tmp_path / "run", base)
    apart = evaluate(run, tasks, names=["first", "second"])
    merged = evaluate(run, tasks, "--merge", names=["first", "second"])
    assert merged["target"]["merged"]
    assert not apart["target"]["merged"]
    assert merged["columns"] == apart["columns"]
    with pytest.raises(UserError, match="cannot be merged: it has no adapter"):
        evaluate(base, tasks, "--merge")


def test_finished_tasks_are_kept_until_something_that_matters_changes(
    tmp_path: Path, base: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", base)
    first = evaluate(run, tasks, names=["first", "second"])
    capsys.readouterr()
    again = evaluate(run, tasks, names=["first", "second", "third"])
    output = capsys.readouterr().out
    assert output.count("(kept)") == 2
    assert again["columns"]["first"] == first["columns"]["first"]
    evaluate(run, tasks, "--seed", "1", names=["first"])
    assert "(kept)" not in capsys.readouterr().out
    write_run(run, base, scale=0.1)
    evaluate(run, tasks, "--seed", "1", names=["first"])
    assert "(kept)" not in capsys.readouterr().out
    evaluate(run, tasks, "--seed", "1", "--fresh", names=["first"])
    assert "(kept)" not in capsys.readouterr().out


def test_a_failing_task_is_reported_and_the_others_are_kept(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", FIVE)
    broken = (tasks / "third.yaml").read_text()
    (tasks / "third.yaml").write_text(broken + "process_results: !function broken.score\n")
    (tasks / "broken.py").write_text("def score(doc, results):\n    raise ZeroDivisionError('no luck')\n")
    run = write_run(tmp_path / "run", base)
    with pytest.raises(UserError, match=r"1 of 5 tasks failed: third .*no luck"):
        evaluate(run, tasks)
    content = json.loads(results_file(run).read_text())
    assert content["tasks"]["third"]["status"] == "failed"
    assert content["tasks"]["third"]["metrics"] == {}
    assert content["columns"]["third"]["value"] is None
    assert content["average"] is None
    assert content["columns"]["fourth"]["value"] is not None
    (tasks / "third.yaml").write_text(broken)
    capsys.readouterr()
    mended = evaluate(run, tasks)
    assert capsys.readouterr().out.count("(kept)") == 4
    assert mended["average"] is not None


def test_limits_are_exact_counts_that_do_not_leak_from_task_to_task(tmp_path: Path, base: Path) -> None:
    tasks = write_local_tasks(tmp_path / "tasks", ["short", "long"])
    lines = (tasks / "long.jsonl").read_text()
    (tasks / "long.jsonl").write_text(lines * 9)
    suite = tmp_path / "suite.yaml"
    suite.write_text(
        "include_path: [tasks]\ncolumns: {S: {tasks: [short], fraction: 0.9}, L: {tasks: [long], fraction: 0.5}}\n"
    )
    run = write_run(tmp_path / "run", base)
    evaluate_command([str(run), "--suite", str(suite), "--batch-size", "8"])
    entries = json.loads((run / "results.suite.json").read_text())["tasks"]
    assert [(e["documents"], e["documents_total"]) for e in entries.values()] == [(11, 12), (54, 108)]


@pytest.mark.slow
def test_two_processes_share_the_documents_and_one_writes(tmp_path: Path, base: Path, tasks: Path) -> None:
    """The harness's data parallelism (`accelerate launch`), made to believe that two CPU processes are two GPUs."""
    options = [str(base), "--tasks", "first", "second", "--include-path", str(tasks), "--batch-size=1", "--device=cpu"]
    script = tmp_path / "launch.py"
    script.write_text(
        "import sys, torch\n"
        "torch.cuda.device_count = lambda: 2\n"
        "from forgetting.evaluation.command import evaluate_command\n"
        f"evaluate_command([*{options!r}, '--output', sys.argv[1]])\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(script), str(tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("[1/2] first") == 1
    evaluate_command([*options, "--output", str(tmp_path / "one")])
    one, two = (json.loads(results_file(tmp_path / name).read_text()) for name in ("one", "two"))
    assert two["average"] == pytest.approx(one["average"])
    assert [entry["documents"] for entry in two["tasks"].values()] == [12, 12]
    for name in ("first", "second"):
        records = [task_records(tmp_path / side, name) for side in ("one", "two")]
        assert records[0] == records[1]


def test_output_can_be_put_elsewhere_and_costs_are_noted(tmp_path: Path, base: Path, tasks: Path) -> None:
    evaluate_command([
        str(base), "--tasks", "first", "--include-path", str(tasks), "--batch-size", "4",
        "--output", str(tmp_path / "here"), "--documents", "5",
    ])  # fmt: skip
    assert results_file(tmp_path / "here").name == "results.tasks=first.trial.json"
    assert json.loads(results_file(tmp_path / "here").read_text())["tasks"]["first"]["documents"] == 5
    costs = json.loads((tmp_path / "here/cost.json").read_text())
    assert [cost["stage"] for cost in costs] == ["evaluate"]
    assert not list((tmp_path / "here").glob("*.partial*"))


@pytest.mark.slow
def test_killed_in_the_third_of_five_tasks_and_started_again(tmp_path: Path, base: Path) -> None:
    """A real SIGKILL; the first two tasks are not run again, and the end equals an uninterrupted evaluation."""
    tasks = write_local_tasks(tmp_path / "tasks", FIVE)
    flag = tmp_path / "killed"
    (tasks / "deadly.py").write_text(
        "import os, signal, pathlib\n"
        f"FLAG = pathlib.Path({str(flag)!r})\n"
        "def text(doc):\n"
        "    if not FLAG.exists() and doc['text'].endswith(' 5'):\n"
        "        FLAG.touch()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return doc['text'] + '\\nAnswer:'\n"
    )
    third = yaml.safe_load((tasks / "third.yaml").read_text())
    del third["doc_to_text"]
    (tasks / "third.yaml").write_text(yaml.safe_dump(third) + "doc_to_text: !function deadly.text\n")
    run = write_run(tmp_path / "run", base)
    command = ["evaluate", str(run), "--tasks", *FIVE, "--include-path", str(tasks), "--batch-size", "4"]

    assert in_process(command) == -signal.SIGKILL
    assert not list(run.glob("results.*"))
    status, said = Forked(command).finish()
    assert status == 0, said
    kept = [line.split()[1] for line in said.splitlines() if line.endswith("(kept)")]
    assert kept == ["first:", "second:"]
    resumed = json.loads(results_file(run).read_text())
    uninterrupted = evaluate(run, tasks, "--fresh")
    assert numbers(resumed) == numbers(uninterrupted)


def test_without_a_terminal_a_tasks_bar_is_lines(
    tmp_path: Path, base: Path, tasks: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    command = [str(base), "--tasks", "first", "--include-path", str(tasks), "--batch-size", "4", "--device", "cpu"]
    evaluate_command([*command, "--output", str(tmp_path / "lines")])
    said = capsys.readouterr()
    done = re.findall(r"^\[1/1\] first: loglikelihood requests: +\d+% (\d+)/(\d+) \[", said.out, re.MULTILINE)
    assert done[-1][0] == done[-1][1] != "0"
    assert "|" not in said.out
    assert not said.err
    evaluate_command([*command, "--output", str(tmp_path / "quiet"), "--quiet"])
    assert "requests" not in capsys.readouterr().out
