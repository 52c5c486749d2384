"""A run that is killed, terminated or damaged resumes to the bytes of an uninterrupted one, or says why it cannot."""

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import wandb_files
from lightning import LightningModule, Trainer
from processes import in_process
from small_experiment import METHOD, REFERENCE, RUN, STEPS, adapter_bytes, metrics, signal_at

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.method.steps import StepSampler
from forgetting.method.store import ScoreStore
from forgetting.runs.checkpoints import load_checkpoint, steps_in_checkpoint
from forgetting.runs.cost import Cost
from forgetting.runs.records import RunRecord

FIT = ["fit", "--config", METHOD]


@pytest.fixture(scope="module")
def whole(scored_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole") / "work"
    shutil.copytree(scored_experiment, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(FIT)
    return folder / RUN


@pytest.fixture
def work(scored_work: Path) -> Path:
    return scored_work


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_run_killed_again_and_again_ends_with_the_bytes_and_rows_of_an_uninterrupted_one(work, whole, workers):
    """Killed in the middle of an epoch, at a step with validation and checkpoint, at an epoch's end and after it."""
    options = [*FIT, "--data.num_workers", str(workers)]
    begun = time.perf_counter()
    for on, step in (
        ("step", 1),
        ("next", 3),
        ("step", 6),
        ("next", 6),
        ("step", 7),
        ("next", 10),
        ("step", STEPS),
        ("end", STEPS),
    ):
        assert in_process([*options, *signal_at(on=on, step=step)]) == -signal.SIGKILL
        assert not (RUN / "adapter").exists()
    main(options)
    assert adapter_bytes() == adapter_bytes(whole)
    assert metrics() == metrics(whole)
    assert len(metrics()) == STEPS
    (cost,) = json.loads((RUN / "cost.json").read_text())
    (expected,) = json.loads((whole / "cost.json").read_text())
    assert cost["tokens"] == expected["tokens"]
    assert cost["launches"] > 1 == expected["launches"]
    assert 0 < cost["seconds"] < time.perf_counter() - begun
    assert len(json.loads((RUN / "provenance.json").read_text())["launches"]) == 9


def test_the_cost_is_that_of_the_steps_kept_over_all_launches(monkeypatch):
    """By a clock that is set by hand: waiting for data counts, validation does not, nor what a kill undid."""
    clock = 100.0
    monkeypatch.setattr("forgetting.runs.cost.time.perf_counter", lambda: clock)
    batch = SimpleNamespace(num_tokens=7)
    trainer, module = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu"), LightningModule()

    def step(cost, seconds):
        nonlocal clock
        clock += seconds
        cost.on_train_batch_end(trainer, module, None, batch, 0)

    first = Cost(Path())
    first.on_train_start(trainer, module)
    step(first, 2)
    clock += 50  # validation
    first.on_validation_end(trainer, module)
    step(first, 3)
    checkpoint = first.state_dict()
    step(first, 1000)  # undone by a kill
    clock += 1000
    second = Cost(Path())
    second.load_state_dict(checkpoint)
    second.on_train_start(trainer, module)
    step(second, 4)
    assert second.state_dict() == {"seconds": 9.0, "tokens": 21, "launches": 2}


def test_the_control_a_sampler_that_begins_anew_is_refused(work, monkeypatch):
    """What a loader with workers did when it asked where the run stood before the checkpoint was restored."""
    assert in_process([*FIT, *signal_at(step=3)]) == -signal.SIGKILL
    iterate = StepSampler.__iter__

    def from_the_start(self):
        self.steps_done = lambda: 0
        return iterate(self)

    monkeypatch.setattr(StepSampler, "__iter__", from_the_start)
    with pytest.raises(RuntimeError, match="the loader gave step 0 where step 2 is due"):
        main(FIT)
    assert not (RUN / "adapter").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(("on", "step", "kept"), [("step", 5, 5), ("step", 6, 6), ("validation", 3, 3)])
def test_a_run_that_is_asked_to_end_keeps_the_step_it_is_at(work, whole, number, on, step, kept):
    options = [*FIT, "--run.checkpoint_every_n_steps", "100"]
    assert in_process([*options, *signal_at(number=int(number), step=step, on=on)]) == 128 + number
    assert steps_in_checkpoint(RUN / "checkpoints/last.ckpt") == kept
    assert {path.name for path in RUN.iterdir()} == {"checkpoints", "fit.yaml", "metrics.csv", "provenance.json"}
    main(FIT)
    assert adapter_bytes() == adapter_bytes(whole)
    assert metrics() == metrics(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_store_whose_scoring_is_asked_to_end_is_finished_later(work, number):
    store = Path("runs/tiny/reference/seed-0/scores")
    before = {path.name: path.read_bytes() for path in (store / "train").iterdir()}
    shutil.rmtree(store)
    score = ["score", "--config", REFERENCE]
    assert in_process([*score, *signal_at(number=int(number), on="predict")]) == 128 + number
    assert not list(store.rglob("*.arrow"))  # it did not go on to the end of the shard
    main(score)
    assert {path.name: path.read_bytes() for path in (store / "train").iterdir()} == before
    (entry,) = [e for e in json.loads((store.parent / "cost.json").read_text()) if e["stage"] == "score"]
    assert entry["seconds"] > 0
    lengths = sum(json.loads(file.read_text())["tokens"] for file in (store / "cost").rglob("*.json"))
    assert entry["tokens"] == lengths


def test_validation_that_is_asked_to_end_does(work, whole):
    main(FIT)
    validate = ["validate", "--config", METHOD]
    assert in_process([*validate, *signal_at(number=int(signal.SIGTERM), on="validation")]) == 128 + signal.SIGTERM
    assert not (RUN / "validation.json").exists()
    main(validate)
    held_out = json.loads((RUN / "validation.json").read_text())
    last = [float(row["validation/nll"]) for row in metrics() if row["validation/nll"]][-1]
    assert held_out["validation/nll"] == pytest.approx(last, rel=0.2)  # of two steps before


def test_the_checkpoint_of_another_run_is_refused(work):
    assert in_process([*FIT, *signal_at(step=3)]) == -signal.SIGKILL
    other = str(RUN / "checkpoints/last.ckpt")
    for options in (["--seed_everything", "1"], ["--data.positive_fraction", "0.5"]):
        with pytest.raises(UserError, match=r"is of another run than .*; to start from another run's adapter give it"):
            main([*FIT, *options, "--ckpt_path", other])
    torch.save({"state_dict": {}, "global_step": 2, "pytorch-lightning_version": "2.6.0"}, "foreign.ckpt")
    with pytest.raises(UserError, match="is of another run|belongs to another base model"):
        main([*FIT, "--ckpt_path", "foreign.ckpt"])
    assert not list(Path("runs").rglob("forgetting*/**/adapter"))
    main([*FIT, "--ckpt_path", other])


def test_a_byte_that_was_changed_in_a_checkpoint_is_found(work, tmp_path):
    assert in_process([*FIT, *signal_at(step=3)]) == -signal.SIGKILL
    path = RUN / "checkpoints/last.ckpt"
    whole = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = [*torch.randint(len(whole), (60,), generator=generator).tolist(), *range(len(whole) - 60, len(whole))]
    for place in places:  # the archive's directory is at its end, and no check sum of its own covers it
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="was cut short or damaged"):
            load_checkpoint(path)
    path.write_bytes(whole)
    load_checkpoint(path)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(work, whole):
    assert in_process([*FIT, *signal_at(step=5)]) == -signal.SIGKILL
    last, previous = RUN / "checkpoints/last.ckpt", RUN / "checkpoints/previous.ckpt"
    assert (steps_in_checkpoint(previous), steps_in_checkpoint(last)) == (2, 4)
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"cannot be read .* Replace it by the one before \(mv {previous} {last}\)"):
        main(FIT)
    previous.rename(last)
    main(FIT)
    assert adapter_bytes() == adapter_bytes(whole)


def test_a_process_killed_between_two_renames_loses_nothing(work, whole):
    assert in_process([*FIT, *signal_at(step=5)]) == -signal.SIGKILL
    (RUN / "checkpoints/last.ckpt").unlink()  # the old one is `previous.ckpt` by then, and the new one not yet here
    main(FIT)
    assert adapter_bytes() == adapter_bytes(whole)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_at_weights_and_biases(work, whole, monkeypatch):
    """Nothing is missing before the step where the second launch begins, and no key is kept."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    secret = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("HF_TOKEN", secret)
    options = [*FIT, "--run.wandb", "{project: mine}", "--run.wandb_artifacts", "true"]
    assert in_process([*options, *signal_at(step=3)]) == -signal.SIGKILL
    assert in_process(options) == 0
    assert adapter_bytes() == adapter_bytes(whole)

    first, second = wandb_files.offline_parts(RUN)
    identity = (RUN / "wandb.id").read_text()
    assert first.name == second.name == f"run-{identity}.wandb"
    described = wandb_files.description(second)
    assert (described.run_id, described.project, described.job_type) == (identity, "mine", "fit")
    assert described.display_name == "tiny/forgetting/seed-0"
    assert (described.run_group, [*described.tags]) == ("tiny", ["tiny", "forgetting"])
    config = wandb_files.config(second)
    assert config["model"]["lora"]["rank"] == 4
    assert config["provenance"]["inputs"] == json.loads((RUN / "provenance.json").read_text())["inputs"]

    # The first launch was killed with a part of what it had logged in memory, so the second logs all of it again.
    rows = wandb_files.history(second)
    assert {row["trainer/global_step"] for row in rows} == {*range(STEPS)}
    sides = ("nll", "nll_positive", "nll_negative")
    curves = [f"train/{name}" for name in ("nll_positive", "nll_negative", "coefficient", "gradient_norm")]
    for number, expected in enumerate(metrics(whole)):
        logged = {k: v for row in rows if row["trainer/global_step"] == number for k, v in row.items()}
        for name in (*curves, *(f"validation/{side}" for side in sides)):
            assert logged.get(name) == (float(expected[name]) if expected[name] else None)
    shown = wandb_files.summary(second)
    assert shown["selection/num_positive"] > 0
    num_scores = sum(shown["selection/scores/values"])
    assert num_scores == shown["selection/num_positive"] + shown["selection/num_negative"]
    assert shown["cost/fit/launches"] == 2
    assert list(RUN.glob("wandb/offline-run-*/files/media/table/selection/tokens*.json"))
    (artifact,) = [artifact for artifact in wandb_files.artifacts(second) if artifact.type == "model"]
    assert artifact.name == "adapter-tiny-forgetting-seed-0"
    assert "adapter_model.safetensors" in [entry.path for entry in artifact.manifest.contents]
    assert [
        file for file in (RUN / "wandb").rglob("*") if file.is_file() and secret.encode() in file.read_bytes()
    ] == []


def test_scores_add_their_health_and_manifest_to_the_references_run(scored_work, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logged = ["--run.wandb={project: mine}", "--run.wandb_artifacts=true"]
    reference = Path("runs/tiny/reference/seed-0")
    shutil.rmtree(reference)
    main(["fit", "--config", REFERENCE, *logged])
    main(["score", "--config", REFERENCE, *logged])
    trained, scored = wandb_files.offline_parts(reference)
    assert wandb_files.description(trained).run_id == wandb_files.description(scored).run_id
    shown = wandb_files.summary(scored)
    store = ScoreStore.open(reference / "scores").split("train")
    score = store.column("nll_base") - store.column("nll_reference")
    assert shown["health/positive_score_fraction"] == pytest.approx((score > 0).mean())
    assert shown["cost/score/seconds"] > 0
    (artifact,) = [artifact for artifact in wandb_files.artifacts(scored) if artifact.type == "scores"]
    assert [entry.path for entry in artifact.manifest.contents] == ["manifest.json"]


def test_the_held_out_nll_is_logged_before_the_first_step_and_moves_nothing(work, whole):
    """Lightning's check goes over all of D_val, once: a resumed run and one that does not ask leave it out."""
    first, *_, last = [float(row["validation/nll"]) for row in metrics(whole) if row["validation/nll"]]
    assert first > last
    main([*FIT, "--trainer.num_sanity_val_steps", "0"])
    assert metrics()[0]["validation/nll"] == ""
    assert metrics()[1:] == metrics(whole)[1:]
    assert adapter_bytes() == adapter_bytes(whole)


def test_a_resumed_run_does_not_check_the_held_out_nll_again(work, whole, monkeypatch):
    assert in_process([*FIT, *signal_at(step=3)]) == -signal.SIGKILL
    checks: list[int] = []
    monkeypatch.setattr(RunRecord, "on_sanity_check_end", lambda self, trainer, module: checks.append(1))
    main(FIT)
    assert not checks
    assert metrics() == metrics(whole)


def test_a_logger_of_the_user_s_own_is_kept_next_to_ours_and_named_after_the_run(work, whole, monkeypatch):
    calls = []
    stand_in = SimpleNamespace(
        init=lambda **given: calls.append(("init", None, given)),
        log=lambda values, step: calls.append(("log", values, {"step": step})),
        finish=lambda: calls.append(("finish", None, {})),
    )
    logger = ["--trainer.logger", "forgetting.runs.loggers.Trackio"]
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="needs trackio: pip install trackio"):
        main([*FIT, *logger])
    assert not RUN.exists()
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    main([*FIT, *logger])
    assert adapter_bytes() == adapter_bytes(whole)
    assert metrics() == metrics(whole)
    (_, _, begun), *logged, (ended, _, _) = calls
    assert (begun["name"], begun["group"], ended) == ("tiny/forgetting/seed-0", "tiny", "finish")
    assert begun["config"]["model"]["lora"]["rank"] == 4
    assert {given["step"] for _, _, given in logged} == {*range(STEPS)}
    assert "seed-0" not in (RUN / "fit.yaml").read_text()  # which a run of another seed may be started from
