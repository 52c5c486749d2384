import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import wandb_files

from forgetting.evaluation.tracking import append_cost, evaluation_summary, log_evaluation
from forgetting.weights_and_biases import wandb_options, wandb_run

COLUMNS = {
    "BoolQ": {"metric": "acc", "value": 50.0, "stderr": 1.0, "documents": 4},
    "ASDiv": {"metric": "acc", "value": None, "stderr": None, "documents": 0},  # it failed
}
CONTENT: dict[str, Any] = {
    "target": {"name": "x", "base": {"hash": "aa"}, "adapter": None}, "suite": "main", "protocol": "corrected",
    "versions": {}, "seed": 42, "columns": COLUMNS, "average": 50.0,
}  # fmt: skip
SCALARS = {
    "eval/main/corrected/BoolQ": 50.0, "eval/main/corrected/BoolQ_stderr": 1.0, "eval/main/corrected/average": 50.0,
}  # fmt: skip


def write_run(folder: Path, wandb: str = "{project: mine}") -> None:
    """The folder of a run that logs to Weights & Biases, and has done so."""
    folder.mkdir(parents=True)
    (folder / "fit.yaml").write_text(
        f"{{run: {{id: a/b@x=1, wandb: {wandb}}}, seed_everything: 3, model: {{learning_rate: 0.1}}}}"
    )
    (folder / "wandb.id").write_text("0123456789abcdef")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()  # its service would be shared with the processes that later tests fork


def test_costs_are_appended(tmp_path: Path) -> None:
    append_cost(tmp_path, 1.5, torch.device("cpu"))
    append_cost(tmp_path, 2.0, torch.device("cpu"))
    costs = json.loads((tmp_path / "cost.json").read_text())
    assert [cost["seconds"] for cost in costs] == [1.5, 2.0]
    assert set(costs[0]) == {"stage", "seconds", "device", "tokens", "peak_memory_bytes"}


def test_a_column_is_a_scalar_and_a_trial_s_goes_by_another_name() -> None:
    assert evaluation_summary(CONTENT) == SCALARS
    assert set(evaluation_summary(CONTENT, trial=True)) == {name.replace("eval/", "trial/") for name in SCALARS}


def test_a_run_that_does_not_log_there_gets_no_run_there(tmp_path: Path) -> None:
    write_run(tmp_path / "run", wandb="null")
    log_evaluation(tmp_path / "run", tmp_path, CONTENT)
    log_evaluation(tmp_path, tmp_path, CONTENT)
    assert not list(tmp_path.rglob("wandb"))


@pytest.mark.slow
def test_a_run_s_evaluations_are_scalars_of_its_own_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(run)
    append_cost(run, 2.0, torch.device("cpu"))
    log_evaluation(run, run / "eval", CONTENT)
    (part,) = wandb_files.offline_parts(run)
    described = wandb_files.description(part)
    assert (described.run_id, described.project) == ("0123456789abcdef", "mine")
    assert (described.display_name, described.run_group) == ("a/b@x=1/seed-3", "a")
    assert [*described.tags] == ["a", "b", "x=1"]
    shown = wandb_files.summary(part)
    assert {name: shown.get(name) for name in SCALARS} == SCALARS
    assert shown["cost/evaluate/seconds"] == 2.0
    assert wandb_files.config(part)["model"] == {"learning_rate": 0.1}
    # Asked into another project, it cannot be the same run.
    log_evaluation(run, run / "eval", CONTENT, asked={"project": "other"})
    (part,) = wandb_files.offline_parts(run / "eval")
    described = wandb_files.description(part)
    assert (described.project, described.job_type) == ("other", "evaluate")
    assert described.run_id != "0123456789abcdef"


@pytest.mark.slow
def test_a_model_of_no_run_has_one_run_for_all_its_suites(tmp_path: Path) -> None:
    for suite in ("main", "lab"):
        log_evaluation(tmp_path, tmp_path, {**CONTENT, "suite": suite}, asked={"project": "mine"})
    parts = wandb_files.offline_parts(tmp_path)
    assert [wandb_files.description(part).display_name for part in parts] == ["x", "x"]
    assert len({wandb_files.description(part).run_id for part in parts}) == 1
    assert wandb_files.summary(parts[1])["eval/lab/corrected/BoolQ"] == 50.0


@pytest.mark.slow
def test_what_fails_while_a_run_is_resumed_is_marked_failed_there(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="broken"),
        wandb_run(wandb_options({"project": "mine"}, tmp_path, "a", 0)),
    ):
        raise RuntimeError("broken")
    (part,) = wandb_files.offline_parts(tmp_path)
    assert [record.exit.exit_code for record in wandb_files.read_records(part) if record.HasField("exit")] == [1]
