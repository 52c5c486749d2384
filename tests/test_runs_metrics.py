"""`metrics.csv` resumes with its run; Weights & Biases never asks for a key."""

import csv
import socket
import sys
import time
from types import SimpleNamespace

import pytest
from jsonargparse import Namespace

from forgetting.errors import UserError
from forgetting.run_folder import read_metrics
from forgetting.runs.loggers import MetricsFile, Trackio, wandb_logger
from forgetting.runs.run import Run
from forgetting.runs.trainer_cli import _name_loggers
from forgetting.weights_and_biases import refuse_wandb_settings, wandb_mode, wandb_options, without_secrets


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


def test_a_row_that_was_cut_off_is_no_row(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(12):
        log.log_metrics({"loss": float(step)}, step)
    log.write()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[: whole.rindex(b"1,11.0") + 1])  # of step 11, "1" is left
    resumed = MetricsFile(log.path)
    resumed.start_at(20)
    resumed.log_metrics({"loss": 20.0}, 20)
    resumed.write()
    assert [row["step"] for row in rows(log.path)] == [*map(str, range(11)), "20"]


def test_rows_of_another_width_and_without_a_step_are_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    assert read_metrics(path) == []
    for text in ("", "step,loss", "step,loss\n"):
        path.write_text(text)
        assert read_metrics(path) == []
    path.write_text("step,loss\n0,1.0\n1\n2,3.0,4.0\n,5.0\nx,6.0\n\n3,\n4,7")  # the last has no end
    assert read_metrics(path) == [{"step": "0", "loss": "1.0"}, {"step": "3", "loss": ""}]


def test_rows_are_appended_and_not_written_again(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"loss": 0.0}, 0)
    log.write()
    inode = log.path.stat().st_ino
    for step in range(1, 500):
        log.log_metrics({"loss": float(step)}, step)
        log.save()
    log.finalize("success")
    assert log.path.stat().st_ino == inode
    assert [row["step"] for row in rows(log.path)] == [*map(str, range(500))]


@pytest.fixture
def server():
    """Something that listens, as the server of Weights & Biases would."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(("key", "netrc", "mode"), [
    (None, "", "offline"), ("x" * 40, "", "online"), (None, "machine 127.0.0.1 login user password x\n", "online"),
    (None, "machine elsewhere.org login user password x\n", "offline"),
])  # fmt: skip
def test_without_a_key_weights_and_biases_is_offline(tmp_path, monkeypatch, server, key, netrc, mode):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run = Run("table3/x/full", 2, {}, tmp_path)
    settings = wandb_logger({"project": "p", "tags": ["t"]}, run)._wandb_init
    assert settings["mode"] == mode
    assert settings["name"] == "table3/x/full/seed-2"
    assert settings["project"] == "p"
    assert settings["id"] == (run.folder / "wandb.id").read_text()
    assert wandb_logger({}, run)._wandb_init["id"] == settings["id"]  # a later launch resumes it
    assert settings["resume"] == "allow"
    assert not any("x" * 40 in str(value) for value in settings.values())


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch, capsys):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        start = time.monotonic()
        assert wandb_mode(None) == "offline"
    assert time.monotonic() - start < 60  # wandb's own attempts take minutes
    assert "does not answer" in capsys.readouterr().err


def test_a_mode_that_is_asked_for_is_kept(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_logger({"mode": "disabled"}, Run("a", 0, {}, tmp_path))._wandb_init["mode"] == "disabled"


def test_a_run_s_path_says_its_group_and_tags_and_its_settings_win(tmp_path):
    options = wandb_options({}, tmp_path / "a", "table3/llama-3.2-1b/forgetting-token@rank=8+t_max=0.5", 2)
    assert options["group"] == "table3/llama-3.2-1b"
    assert options["tags"] == ["table3", "llama-3.2-1b", "forgetting-token", "rank=8", "t_max=0.5"]
    assert options["job_type"] == "fit"
    options = wandb_options({"group": "g", "tags": ["t"], "id": "mine"}, tmp_path / "a", "a/b", 2)
    assert (options["group"], options["tags"], options["id"]) == ("g", ["t"], "mine")
    assert (tmp_path / "a/wandb.id").read_text() == "mine"
    assert len(wandb_options({}, tmp_path / "b", "a@" + "x" * 99, 0)["tags"][1]) == 64  # wandb takes no longer one


def test_the_run_of_a_sweep_is_the_one_that_its_agent_names(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "fromagent")
    assert wandb_options({}, tmp_path / "a", "a", 0)["id"] != "fromagent"  # left over from something else
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert wandb_options({}, tmp_path / "b", "a", 0)["id"] == "fromagent"
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert wandb_options({}, tmp_path / "b", "a", 0)["id"] == "fromagent"  # evaluated later, outside of the sweep


def test_a_run_of_which_a_part_is_not_synced_goes_on_offline(tmp_path, capsys):
    settings = {"mode": "online", "id": "mine"}
    assert wandb_options(settings, tmp_path, "a", 0)["mode"] == "online"
    part = tmp_path / "wandb/offline-run-20260101_000000-mine/run-mine.wandb"
    part.parent.mkdir(parents=True)
    part.touch()
    assert wandb_options(settings, tmp_path, "a", 0)["mode"] == "offline"
    assert f"wandb sync {tmp_path}/wandb" in capsys.readouterr().err
    part.with_name("run-mine.wandb.synced").touch()
    assert wandb_options(settings, tmp_path, "a", 0)["mode"] == "online"


def test_no_key_is_taken_or_shown():
    with pytest.raises(UserError, match=r"has api_key, which fit.yaml would keep in plain text.*wandb login"):
        refuse_wandb_settings({"settings": {"api_key": "x" * 40}})
    config = {"data": {"path": "https://me:secret@host/x", "token": "secret", "granularity": "token"}, "more": [None]}
    assert without_secrets(config) == {
        "data": {"path": "https://host/x", "token": "(hidden)", "granularity": "token"}, "more": [None],
    }  # fmt: skip


@pytest.fixture
def trackio(monkeypatch):
    """A stand-in for trackio, and the calls that it got."""
    calls = []
    stand_in = SimpleNamespace(
        init=lambda **given: calls.append(("init", given)),
        log=lambda values, step: calls.append(("log", values, step)),
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    return calls


def test_trackio_gets_a_run_s_configuration_and_its_steps(trackio):
    logger = Trackio(project="p", name="a/seed-0", group="a")
    logger.finalize("success")
    assert trackio == []  # nothing was logged: no run
    logger.log_hyperparams({"model": {"lora": 4}})
    logger.log_metrics({"train/loss": 2.0}, step=0)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.finalize("success")
    begun = {
        "project": "p", "name": "a/seed-0", "group": "a", "space_id": None, "config": {"model": {"lora": 4}},
        "resume": "allow",
    }  # fmt: skip
    steps = [("log", {"train/loss": 2.0}, 0), ("log", {"train/loss": 1.0}, 1)]
    assert trackio == [("init", begun), *steps, "finish"]


def test_without_trackio_its_logger_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="needs trackio: pip install trackio"):
        Trackio()


def test_another_logger_is_given_the_rows_before_a_resumed_step_again(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(3):
        log.log_metrics({"loss": float(step)}, step)
    log.log_metrics({"validation/nll": 9.0}, 2)
    log.write()
    log.start_at(2)
    other = MetricsFile(tmp_path / "other.csv")
    log.log_again(other)
    other.write()
    assert rows(other.path) == [{"step": "0", "loss": "0.0"}, {"step": "1", "loss": "1.0"}]


def test_a_tensorboard_of_a_run_is_named_after_it_so_that_a_later_launch_resumes_it(tmp_path):
    given = {"save_dir": "tb", "name": "lightning_logs", "version": None}
    logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=Namespace(**given))
    own = Namespace(class_path="TensorBoardLogger", init_args=Namespace(save_dir="tb", name="mine", version="v"))
    _name_loggers(Namespace(logger=[logger, own]), Run("a/b", 3, {}, tmp_path))
    assert logger.init_args.as_dict() == {"save_dir": "tb", "name": "a/b", "version": "seed-3"}
    assert own.init_args.as_dict() == {"save_dir": "tb", "name": "mine", "version": "v"}
    for nothing in (None, True, False):
        _name_loggers(Namespace(logger=nothing), Run("a/b", 3, {}, tmp_path))
