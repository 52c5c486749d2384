"""Faults that a run meets: a second process, weights that diverge, a full disk, a damaged file, values out of range."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from processes import in_process
from safetensors.torch import load_file, save_file
from small_experiment import METHOD, REFERENCE, RUN, adapter_bytes, signal_at

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.lock import locked
from forgetting.method.module import FineTuner
from forgetting.runs.records import RunRecord

FIT = ["fit", "--config", METHOD]
REFERENCE_RUN = Path("runs/tiny/reference/seed-0")


@pytest.fixture
def work(scored_work: Path) -> Path:
    return scored_work


def test_a_second_fit_in_the_same_folder_is_refused_and_the_first_goes_on(work):
    with locked(RUN):
        assert in_process(FIT) == 70  # a UserError, in another process
    main(FIT)
    assert (RUN / "adapter/adapter_model.safetensors").is_file()


def test_a_gradient_that_is_not_finite_ends_the_run_before_it_does_harm(work, monkeypatch):
    clip = FineTuner._clip_gradient
    steps = []

    def diverge(self):
        steps.append(self.trainer.global_step)
        if self.trainer.global_step == 4:
            next(iter(self.trainable().values())).grad.fill_(float("nan"))
        return clip(self)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuner, "_clip_gradient", diverge)
        with pytest.raises(UserError, match=r"Step 4: the gradient's norm is nan. Nothing was changed"):
            main(FIT)
    assert steps == [0, 1, 2, 3, 4]
    assert not (RUN / "adapter").exists()
    main(FIT)
    state = load_file(RUN / "adapter/adapter_model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_an_adapter_that_is_not_finite_is_neither_scored_nor_validated(work):
    weights = REFERENCE_RUN / "adapter/adapter_model.safetensors"
    state = load_file(weights)
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, weights)
    (REFERENCE_RUN / "adapter/SHA256SUMS").unlink(missing_ok=True)
    for command in ("score", "validate"):
        with pytest.raises(UserError, match=r"not finite|another adapter|adapter or precision"):
            main([command, "--config", REFERENCE])


def test_a_base_that_was_changed_is_refused(work):
    weights = work / "backbone/model.safetensors"
    flipped = bytearray(weights.read_bytes())
    flipped[-3] ^= 1
    weights.write_bytes(flipped)
    for command in (FIT, ["score", "--config", REFERENCE], ["validate", "--config", REFERENCE]):
        with pytest.raises(UserError, match=r"another backbone|another base|base, adapter or precision"):
            main(command)
    assert not (RUN / "adapter").exists()


def test_an_adapter_that_diverged_in_its_last_step_is_not_saved(work, monkeypatch):
    write = RunRecord.on_fit_end

    def diverge(self, trainer, pl_module):
        with torch.no_grad():
            next(iter(pl_module.trainable().values())).fill_(float("inf"))
        write(self, trainer, pl_module)

    monkeypatch.setattr(RunRecord, "on_fit_end", diverge)
    with pytest.raises(UserError, match=r"diverged in its last step: 1 of the adapter's tensors"):
        main(FIT)
    assert not (RUN / "adapter").exists()


def test_an_id_that_is_given_is_kept(work):
    main([*FIT, "--run.id", "tiny/forgetting", "--trainer.max_steps", "2", "--trainer.max_epochs", "-1"])
    assert (RUN / "adapter").is_dir()


def test_another_precision_does_not_resume_a_run(work, capfd):
    assert in_process([*FIT, *signal_at(step=3)]) == -9
    with pytest.raises(UserError, match=r"trainer.precision: '32-true' there, 'bf16-mixed' now"):
        main([*FIT, "--trainer.precision", "bf16-mixed"])
    main([*FIT, "--trainer.precision", "32"])  # the same one by its short name
    assert "bf16-mixed is slow on a CPU" not in capfd.readouterr().out
    main(["validate", "--config", METHOD, "--trainer.precision", "bf16-mixed"])
    assert "bf16-mixed is slow on a CPU" in capfd.readouterr().out
    assert json.loads((RUN / "validation.json").read_text())["precision"] == "bf16-mixed"


@contextmanager
def disk_of(size: str, folder: Path) -> Iterator[Path]:
    """A file system of its own, which nothing but a test can fill."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
def test_a_full_disk_loses_nothing_and_says_so(work, tmp_path):
    with disk_of("140k", tmp_path / "disk") as disk:
        shutil.copytree("runs/tiny/reference", disk / "tiny/reference", ignore=shutil.ignore_patterns("checkpoints"))
        options = [*FIT, "--run.root", str(disk), "--run.checkpoint_every_n_steps", "1"]
        with pytest.raises(UserError, match=r"No space left|could not be written"):
            main(options)
        checkpoints = disk / "tiny/forgetting/seed-0/checkpoints"
        assert not list(checkpoints.glob(".*")), "nothing half-written is left"
        subprocess.run(["mount", "-o", "remount,size=8m", str(disk)], check=True)
        main(options)
        main(FIT)
        assert adapter_bytes(disk / "tiny/forgetting/seed-0") == adapter_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
def test_a_store_on_a_read_only_disk_serves_any_selection(work, tmp_path):
    with disk_of("8m", tmp_path / "disk") as disk:
        shutil.copytree(REFERENCE_RUN, disk / "seed-0")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        main([*FIT, "--data.store", str(disk / "seed-0/scores"), "--data.positive_fraction", "0.31"])
        assert list(Path("runs/tiny").glob("forgetting@*/seed-0/adapter"))
        main(["score", "--config", REFERENCE, "--data.store", str(disk / "seed-0/scores")])  # complete: nothing to do


def test_score_writes_where_it_is_told(work):
    main(["score", "--config", REFERENCE, "--data.store", "elsewhere"])
    expected = {path.name: path.read_bytes() for path in (REFERENCE_RUN / "scores/train").iterdir()}
    assert {path.name: path.read_bytes() for path in Path("elsewhere/train").iterdir()} == expected


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", "{", "[" * 100_000])
def test_a_provenance_that_is_not_ours_is_refused_with_what_to_do(work, text):
    assert in_process([*FIT, *signal_at(step=3)]) == -9
    (RUN / "provenance.json").write_text(text)
    with pytest.raises(UserError, match=r"provenance.json .* move that folder away to train again"):
        main(FIT)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.gradient_clip=-1", "model.gradient_clip is -1.0; a finite number was expected, above 0"),
        ("--model.gradient_clip=0", "model.gradient_clip is 0.0"),
        ("--model.learning_rate=-0.1", "model.learning_rate is -0.1"),
        ("--model.learning_rate=.nan", "model.learning_rate is nan"),
        ("--model.warmup_fraction=2", "model.warmup_fraction is 2.0; a finite number was expected, between 0 and 1"),
        ("--model.warmup_fraction=-0.5", "model.warmup_fraction is -0.5"),
        ("--model.weight_decay=-1", "model.weight_decay is -1.0"),
        ("--model.weight_decay=100", "model.weight_decay is 100.0; .* below 1 / learning_rate"),
        ("--model.learning_rate=1e39", r"model.learning_rate is 1e\+39"),
        ("--model.learning_rate=1e-320", "model.learning_rate is 1e-320; a finite number was expected, above 0"),
        ("--model.lora.rank=10000000", "model.lora.rank is 10000000; it must be at least 1, and at most 65,536"),
        ("--model.lora.target_modules=[]", "model.lora.target_modules is empty"),
        ("--model.objective.t_max=null", "A setting cannot be used"),
        ("--trainer.devices=0", "A setting cannot be used"),
        ("--trainer.max_time=nonsense", "A setting cannot be used|max_time"),
        ("--trainer.accelerator=nonsense", "A setting cannot be used"),
        ("--trainer.val_check_interval=0", "trainer.val_check_interval is 0"),
        ("--trainer.val_check_interval=1.5", "trainer.val_check_interval is 1.5"),
        ("--trainer.check_val_every_n_epoch=0", "trainer.check_val_every_n_epoch is 0"),
        ("--trainer.limit_val_batches=-1", "trainer.limit_val_batches is -1"),
        ("--seed_everything=4294967296", "The run's seed is 4294967296"),
        ("--run.wandb={nonsense: 1}", "run.wandb has nonsense, which wandb.init does not take"),
        (
            "--run.wandb=true",
            r"^run.wandb is true; its settings, such as '{project: forgetting}', or null was expected",
        ),
        (
            "--trainer.logger=TensorBoardLogger",
            r"^trainer.logger: TensorBoardLogger: .* are required: save_dir\. --help",
        ),
        ("--run.wandb={mode: bad}", "run.wandb.mode is 'bad'; one of online, offline"),
        ("--trainer.max_steps=0", "trainer.max_steps is 0; it must be at least 1"),
        ("--trainer.max_epochs=0", "trainer.max_epochs is 0; it must be at least 1"),
        ("--trainer.log_every_n_steps=-1", "trainer.log_every_n_steps is -1"),
        ("--trainer.log_every_n_steps=0", "trainer.log_every_n_steps is 0"),
        ("--trainer.precision=16-mixed", "trainer.precision is 16-mixed, which would round"),
        ("--trainer.precision=bf16-true", "trainer.precision is bf16-true, which would round"),
        ("--trainer.strategy=fsdp", "trainer.strategy is fsdp, which this code does not support"),
        ("--run.checkpoint_every_n_steps=0", "run.checkpoint_every_n_steps is 0; it must be at least 1"),
        ("--run.id=../../x", "'../../x' is no name of something inside runs"),
        ("--run.id=/tmp/x", "'/tmp/x' is no name of something inside runs"),
        ("--run.id=.hidden", "no part of it may begin with a dot"),
        ("--data.num_workers=-1", "data.num_workers is -1"),
        ("--data.max_length=1", "data.max_length is 1; it must be at least 2"),
        ("--data.reference_seed=-1", "data.reference_seed is -1"),
        ("--data.positive_fraction=all", "Forgetting needs negative tokens"),
        ("--data.threshold=0", r"data.threshold is 0.0 and data.positive_fraction is 0.7, which exclude each other"),
        ("--data.positive_fraction=null", r"Give data.positive_fraction \(ρ, or .all.\), or data.threshold"),
        ("--data.positive_fraction=.nan", r"\(ρ\) is nan; it must lie between 0 and 1"),
        ("--data.positive_share=0.5", r"unrecognized arguments: --data.positive_share.*Did you mean .*data\.positive_"),
        ("--model.learning_rte=0.5", r"Did you mean model\.learning_rate"),
        ("--model.objective=Forgeting", "Did you mean Forgetting"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_anything_is_loaded(work, option, message):
    with pytest.raises(UserError, match=message):
        main([*FIT, option])
    assert not RUN.exists()


@pytest.mark.skipif(bool(find_spec("tensorboard") or find_spec("tensorboardX")), reason="TensorBoard is installed")
def test_a_logger_that_is_not_installed_is_named_with_the_command_that_installs_it(work):
    logger = "{class_path: TensorBoardLogger, init_args: {save_dir: tb}}"
    with pytest.raises(
        UserError, match=r"^TensorBoardLogger needs tensorboard, .*`pip install tensorboard`.*metrics.csv"
    ):
        main([*FIT, f"--trainer.logger={logger}"])


def test_an_option_that_is_given_twice_is_not_dropped(work):
    with pytest.raises(UserError, match=r"--data.batch_size is given twice"):
        main([*FIT, "--data.batch_size", "3", "--data.batch_size=4"])


def test_all_tokens_need_no_store_and_leave_nothing_to_unlearn(work):
    shutil.rmtree("runs")
    everything = "--data.positive_fraction=all"
    for option in ("--data.forget_fraction=0.1", "--data.threshold=0"):
        with pytest.raises(UserError, match=r"leave data.forget_fraction out|exclude each other"):
            main([*FIT, "--model.objective=MeanNLL", everything, option])
    with pytest.raises(UserError, match='Forgetting needs negative tokens, but data.positive_fraction is "all"'):
        main([*FIT, everything])
    main([*FIT, "--model.objective=MeanNLL", everything, "--run.id=full"])


def test_a_command_without_an_experiment_fetches_nothing():
    for command in ("fit", "validate", "score"):
        with pytest.raises(UserError, match=f"{command} needs an experiment"):
            main([command])


def test_the_version_is_told_and_a_command_is_guessed(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith("forgetting ")
    with pytest.raises(UserError, match="no command 'fti'. Did you mean fit?"):
        main(["fti"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_temporary_folder_elsewhere_costs_no_checkpoint(work, monkeypatch):
    """Killed at any moment of writing: the run resumes from this checkpoint or from the one before."""
    elsewhere = Path("/dev/shm") / f"forgetting-{os.getpid()}"
    elsewhere.mkdir()
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    try:
        for step in (2, 4, 6):
            assert in_process([*FIT, "--run.checkpoint_every_n_steps=1", *signal_at(on="next", step=step)]) == -9
            assert not list(elsewhere.iterdir())
        main(FIT)
    finally:
        shutil.rmtree(elsewhere)
