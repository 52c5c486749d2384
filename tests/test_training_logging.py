"""`metrics.csv` goes on where a run goes on; Weights & Biases never asks."""

import csv

import pytest

from forgetting.training.logging import MetricsFile, wandb_logger


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_step_is_a_row_and_columns_may_come_later(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 1.0, "epoch": 0}, 0)
    log.log_metrics({"loss": 2.0}, 1)
    log.log_metrics({"validation/nll": 3.0}, 1)
    log.finalize("success")
    assert rows(log.path) == [
        {"step": "0", "loss": "1.0", "validation/nll": ""}, {"step": "1", "loss": "2.0", "validation/nll": "3.0"},
    ]  # fmt: skip


def test_a_resumed_run_keeps_what_came_before_and_logs_the_rest_again(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(5):
        log.log_metrics({"loss": float(step)}, step)
    log.write()
    resumed = MetricsFile(log.path)
    resumed.start_at(3)
    resumed.log_metrics({"loss": 30.0}, 3)
    resumed.write()
    assert [row["loss"] for row in rows(log.path)] == ["0.0", "1.0", "2.0", "30.0"]
    fresh = MetricsFile(log.path)
    fresh.start_at(0)
    fresh.log_metrics({"loss": 9.0}, 0)
    fresh.write()
    assert [row["loss"] for row in rows(log.path)] == ["9.0"]


@pytest.mark.parametrize(("key", "netrc", "mode"), [
    (None, "", "offline"), ("x" * 40, "", "online"), (None, "machine api.wandb.ai login user password x\n", "online"),
    (None, "machine elsewhere.org login user password x\n", "offline"),
])  # fmt: skip
def test_without_a_key_weights_and_biases_is_offline(tmp_path, monkeypatch, key, netrc, mode):
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    logger = wandb_logger({"project": "p", "tags": ["t"]}, "table3/x/full", 2, tmp_path / "run")
    settings = logger._wandb_init
    assert settings["mode"] == mode
    assert settings["name"] == "table3/x/full/seed-2"
    assert settings["project"] == "p"
    assert not any("x" * 40 in str(value) for value in settings.values())


def test_a_mode_that_is_asked_for_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_logger({"mode": "disabled"}, "a", 0, tmp_path)._wandb_init["mode"] == "disabled"
