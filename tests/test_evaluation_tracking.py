import json
from pathlib import Path

import pytest
import torch

from forgetting.evaluation.tracking import append_cost, log_table, wandb_settings


def test_costs_are_appended(tmp_path: Path) -> None:
    append_cost(tmp_path, 1.5, torch.device("cpu"))
    append_cost(tmp_path, 2.0, torch.device("cpu"))
    costs = json.loads((tmp_path / "cost.json").read_text())
    assert [cost["seconds"] for cost in costs] == [1.5, 2.0]
    assert set(costs[0]) == {"stage", "seconds", "device", "tokens", "peak_memory_bytes"}


def test_the_run_says_whether_and_how_it_logs_to_weights_and_biases(tmp_path: Path) -> None:
    assert wandb_settings(tmp_path) is None
    (tmp_path / "fit.yaml").write_text("run: {root: runs, wandb: null}")
    assert wandb_settings(tmp_path) is None
    (tmp_path / "fit.yaml").write_text("run: {wandb: {project: mine, tags: [a]}}")
    assert wandb_settings(tmp_path) == {"project": "mine", "tags": ["a"]}


@pytest.mark.slow
def test_without_a_key_the_table_is_kept_for_a_later_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    column = {"metric": "acc", "value": 50.0, "stderr": 1.0, "documents": 4}
    log_table({"project": "mine"}, tmp_path, {
        "target": {"name": "x"}, "suite": "main", "protocol": "corrected", "versions": {}, "seed": 42,
        "columns": {"BoolQ": column}, "average": 50.0,
    })  # fmt: skip
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
