"""Algorithm 1 through the real command line, on a small corpus and a model of a few thousand parameters."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_backbone
from peft import PeftModel
from processes import Forked
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.method.module import FineTuner
from forgetting.method.objectives import MeanNLL, scheduled_coefficient
from forgetting.method.store import ScoreStore
from forgetting.model.adapter_folder import adapter_hash

BASE = """
run: {{checkpoint_every_n_steps: 1}}
trainer: {{accelerator: cpu, devices: 1, precision: 32-true, enable_progress_bar: false}}
model:
  backbone: {backbone}
  dtype: float32
  lora: {{rank: 4}}
  learning_rate: 1.0e-2
  objective: {{class_path: {objective}}}
data:
  corpus:
    sources:
      made: {{path: {source}, prompt: "{{question}}", response: "{{answer}}"}}
    num_train: 40
    num_reference: 16
    num_validation: 8
  max_length: 64
  batch_size: 6
  split: {split}
"""


def write_source(path: Path, rows: int = 80) -> None:
    lines = [
        {"question": f"What is {i} plus {i % 7}?", "answer": f"It is {i + i % 7}" + "." * (i % 11)} for i in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with experiments, a trained reference and its scores. Tests copy it and change the copy."""
    folder = tmp_path_factory.mktemp("work")
    write_backbone(folder / "backbone")
    write_source(folder / "source.jsonl")
    experiments = folder / "experiments" / "tiny"
    experiments.mkdir(parents=True)
    for name, objective, split in [
        ("reference", "MeanNLL", "reference"), ("full", "MeanNLL", "train"), ("ignoring", "MeanNLL", "train"),
        ("forgetting", "Forgetting", "train"),
    ]:  # fmt: skip
        text = BASE.format(backbone="backbone", source="source.jsonl", objective=objective, split=split)
        (experiments / f"{name}.yaml").write_text(text + ("  positive_fraction: all\n" if name == "full" else ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "experiments/tiny/reference.yaml"])
        main(["score", "--config", "experiments/tiny/reference.yaml"])
    return folder


@pytest.fixture
def work(scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    shutil.copytree(scored, folder)
    monkeypatch.chdir(folder)
    return folder


def fit(name: str, *options: str) -> None:
    main(["fit", "--config", f"experiments/tiny/{name}.yaml", *options])


def metrics(run: str) -> list[dict[str, str]]:
    with Path(f"runs/{run}/seed-0/metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def adapter(folder: str) -> dict[str, torch.Tensor]:
    return load_file(f"{folder}/adapter/adapter_model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_leaves_what_it_promises(work):
    fit("forgetting")
    run = Path("runs/tiny/forgetting/seed-0")
    assert {p.name for p in run.iterdir()} == {
        "adapter", "checkpoints", "cost.json", "fit.yaml", "metrics.csv", "provenance.json",
    }  # fmt: skip
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("backbone"), str(run / "adapter"))
    assert model.peft_config["default"].r == 4
    provenance = json.loads((run / "provenance.json").read_text())
    store = ScoreStore.open(Path("runs/tiny/reference/seed-0/scores"))
    assert provenance["inputs"]["store"] == store.hash
    assert provenance["inputs"]["corpus"] == store.identity["corpus"]
    total = store.split("train").num_tokens
    assert provenance["selected"] == {"num_positive": round(0.7 * total), "num_negative": total - round(0.7 * total)}
    rows = metrics("tiny/forgetting")
    assert [int(row["step"]) for row in rows] == list(range(7))  # 40 sequences in steps of 6
    expected = [scheduled_coefficient(step, 7, 1e-4, 0.25) for step in range(7)]
    assert [float(row["train/coefficient"]) for row in rows] == pytest.approx(expected, rel=1e-6)
    assert float(rows[0]["train/learning_rate"]) == 0.0  # warm-up of ceil(0.03 · 7) = 1 step
    assert float(rows[1]["train/learning_rate"]) == pytest.approx(1e-2)
    for row in rows:
        positive, negative = float(row["train/nll_positive"]), float(row["train/nll_negative"])
        loss = positive - float(row["train/coefficient"]) * negative
        assert float(row["train/loss"]) == pytest.approx(loss, rel=1e-4)
    assert float(rows[-1]["validation/nll_positive"]) > 0
    (cost,) = json.loads((run / "cost.json").read_text())
    assert cost["stage"] == "fit"
    assert cost["tokens"] > 0


def test_a_checkpoint_holds_the_adapter_alone_and_loads_without_pickle(work):
    fit("forgetting")
    checkpoint = torch.load("runs/tiny/forgetting/seed-0/checkpoints/last.ckpt", weights_only=True)
    assert all("lora_" in name for name in checkpoint["state_dict"])
    assert checkpoint["global_step"] == 7


def test_the_seed_decides_everything_and_nothing_else_does(work):
    fit("forgetting")
    shutil.copytree("runs/tiny/reference", "again/tiny/reference")
    fit("forgetting", "--run.root", "again")
    fit("forgetting", "--seed_everything", "1")
    first = adapter("runs/tiny/forgetting/seed-0")
    assert same(first, adapter("again/tiny/forgetting/seed-0"))
    assert not same(first, adapter("runs/tiny/forgetting/seed-1"))


def test_a_saved_configuration_runs_again(work):
    fit("forgetting", "--data.positive_fraction", "0.5")
    shutil.copytree("runs/tiny/reference", "again/tiny/reference")
    main(["fit", "--config", "runs/tiny/forgetting@positive_fraction=0.5/seed-0/fit.yaml", "--run.root", "again"])
    run = "tiny/forgetting@positive_fraction=0.5/seed-0"
    assert same(adapter(f"runs/{run}"), adapter(f"again/{run}"))


def test_a_complete_run_is_left_alone(work, capsys):
    fit("full")
    before = Path("runs/tiny/full/seed-0/adapter/adapter_model.safetensors").stat().st_mtime_ns
    fit("full")
    assert "is complete" in capsys.readouterr().out
    assert Path("runs/tiny/full/seed-0/adapter/adapter_model.safetensors").stat().st_mtime_ns == before


def test_full_tokens_needs_no_store(work):
    shutil.rmtree("runs")
    fit("full")
    rows = metrics("tiny/full")
    assert "train/nll_negative" not in rows[0]
    assert float(rows[-1]["validation/nll"]) > 0


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(work):
    fit("forgetting")
    whole = adapter("runs/tiny/forgetting/seed-0")
    rows = metrics("tiny/forgetting")
    shutil.rmtree("runs/tiny/forgetting")
    checkpoint = Path("runs/tiny/forgetting/seed-0/checkpoints/last.ckpt")
    process = Forked(["fit", "--config", "experiments/tiny/forgetting.yaml"])
    while not checkpoint.is_file():
        time.sleep(0.001)
        assert process.is_running()
    os.kill(process.pid, signal.SIGKILL)
    assert process.finish()[0] == -signal.SIGKILL
    assert not Path("runs/tiny/forgetting/seed-0/adapter").exists(), "the run was over before it could be killed"
    done = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < done < 7
    fit("forgetting")
    assert same(whole, adapter("runs/tiny/forgetting/seed-0"))
    resumed = metrics("tiny/forgetting")
    assert [row["train/loss"] for row in resumed if int(row["step"]) >= done] == [
        row["train/loss"] for row in rows if int(row["step"]) >= done
    ]


def test_an_interrupted_store_is_finished(work):
    options = ["--config", "experiments/tiny/reference.yaml", "--data.shard_size", "8"]
    scores = Path("runs/tiny/reference/seed-0/scores")
    shutil.rmtree(scores)
    main(["score", *options])
    whole = {path.name: path.read_bytes() for path in (scores / "train").iterdir()}
    assert len(whole) == 5
    (scores / "manifest.json").unlink()
    kept = (scores / "train/shard-00000.arrow").stat().st_mtime_ns
    (scores / "train/shard-00001.arrow").unlink()
    short = scores / "train/shard-00002.arrow"
    short.write_bytes(short.read_bytes()[:-100])
    with pytest.raises(UserError, match="is unfinished"):
        fit("ignoring")
    main(["score", *options])
    assert {path.name: path.read_bytes() for path in (scores / "train").iterdir()} == whole
    assert (scores / "train/shard-00000.arrow").stat().st_mtime_ns == kept
    fit("ignoring")


def test_a_store_that_was_cut_short_is_refused(work):
    shard = Path("runs/tiny/reference/seed-0/scores/train/shard-00000.arrow")
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UserError, match="was changed or damaged"):
        fit("ignoring")
    assert not Path("runs/tiny/ignoring").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.max_length", "48"], r"score --config experiments/tiny/reference.yaml --data.max_length=48"),
        (["--data.store", "runs/tiny/reference/seed-0/scores", "--data.max_length", "48"], "belongs to another"),
        (["--data.store", "elsewhere"], "elsewhere does not exist"),
        (["--data.reference", "tiny/nothing"], "tiny/nothing/seed-0/scores does not exist"),
        (["--data.reference_seed", "5"], "reference/seed-5/scores does not exist"),
        (["--data.positive_fraction", "1.5"], r"\(ρ\) is 1.5"),
        (["--model.objective.t_min", "0.5"], "0 ≤ t_min ≤ t_max"),
        (["--ckpt_path", "nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        (["--ckpt_path", "last"], "no checkpoint .*last.ckpt"),
    ],
)
def test_errors_come_before_training_and_leave_nothing(work, options, message):
    with pytest.raises(UserError, match=message):
        fit("forgetting", *options)
    left = {str(path) for path in Path("runs").rglob("*") if path.is_file() and "reference/seed-0" not in str(path)}
    assert not left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lora.target_modules", "[nonsense]"], r"match no layer.*Its linear layers are: down_proj"),
        (["--model.lora.modules_to_save", "[lm_head]"], r"lm_head.*ties its embeddings"),
        (["--model.lora.rank", "0"], "rank is 0"),
        (["--model.backbone", "nowhere/at/all"], "There is no model folder nowhere/at/all"),
        (["--model.backbone", "someone/unheard-of"], "someone/unheard-of is not in the local cache and HF_HUB_OFFLINE"),
        (["--model.four_bit", "true"], "needs a CUDA device"),
        (["--trainer.precision", "bf16-true"], "would round the adapter"),
        (["--trainer.gradient_clip_val", "1.0"], "set model.gradient_clip"),
        (["--trainer.accumulate_grad_batches", "4"], "set data.batch_size"),
        (["--trainer.limit_train_batches", "3"], "set trainer.max_steps"),
        (["--trainer.overfit_batches", "2"], "data.corpus.num_train"),
        (["--trainer.use_distributed_sampler", "true"], "must be false"),
        (["--trainer.max_epochs", "-1"], "need an end"),
        (["--seed_everything", "-1"], "must be 0 or more"),
        (["--base", "lab"], "named by the experiment"),
        (["--data.batch_size", "6", "--config", "experiments/tiny/full.yaml"], "comes after an override"),
        (["--conf", "experiments/tiny/full.yaml"], "write --config in full"),
        (["--data.batch_size", "0"], "data.batch_size is 0"),
    ],
)
def test_errors_of_the_model_come_before_training_and_leave_nothing(work, options, message):
    with pytest.raises(UserError, match=message):
        fit("full", *options)
    assert {path.name for path in Path("runs/tiny").iterdir()} == {"reference"}


def test_a_run_that_ends_early_says_so_and_goes_on(work):
    with pytest.raises(UserError, match=r"stopped at step \d of 7"):
        fit("full", "--trainer.max_time", "00:00:00:00")
    (folder,) = Path("runs/tiny").glob("full@*/seed-0")
    assert not (folder / "adapter").exists()


@pytest.mark.slow
def test_a_terminated_run_fails(work):
    process = Forked(["fit", "--config", "experiments/tiny/full.yaml"])
    while not Path("runs/tiny/full/seed-0/checkpoints/last.ckpt").is_file():
        time.sleep(0.001)
        assert process.is_running()
    os.kill(process.pid, signal.SIGTERM)
    assert process.finish()[0] == 128 + signal.SIGTERM
    fit("full")


def test_a_damaged_checkpoint_is_named(work):
    fit("full")
    shutil.rmtree("runs/tiny/full/seed-0/adapter")
    checkpoint = Path("runs/tiny/full/seed-0/checkpoints/last.ckpt")
    for damaged in (checkpoint.read_bytes()[:-1000], b""):
        checkpoint.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last.ckpt cannot be read.*(Remove it|Replace it by the one before)"):
            fit("full")


def test_what_a_reference_was_trained_on_is_what_it_scores(work):
    shutil.rmtree("runs/tiny/reference/seed-0/scores")
    Path("source.jsonl").write_text(Path("source.jsonl").read_text().replace("It is", "That makes"))
    with pytest.raises(UserError, match="made from another corpus"):
        main(["score", "--config", "experiments/tiny/reference.yaml"])


def test_scores_of_another_adapter_or_precision_are_refused(work):
    options = ["score", "--config", "experiments/tiny/reference.yaml"]
    main(options)  # complete: nothing to do
    (Path("runs/tiny/reference/seed-0/scores") / "train/shard-00000.arrow").unlink()
    with pytest.raises(UserError, match="adapter or precision"):
        main([*options, "--trainer.precision", "bf16-mixed"])
    main(options)
    weights = Path("runs/tiny/reference/seed-0/adapter/adapter_model.safetensors")
    tensors = load_file(weights)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
    with pytest.raises(UserError, match="adapter or precision"):
        main(options)
    with pytest.raises(UserError, match="another adapter than the one next to it"):
        fit("ignoring")


def test_a_reference_that_was_edited_since_is_refused(work):
    file = Path("experiments/tiny/reference.yaml")
    file.write_text(file.read_text().replace("rank: 4", "rank: 2"))
    with pytest.raises(UserError, match=r"model.lora.rank: 4 there, 2 now"):
        fit("forgetting")


def test_starting_from_an_adapter_is_another_run(work):
    fit("full", "--model.adapter", "runs/tiny/reference/seed-0/adapter")
    (run,) = Path("runs/tiny").glob("full@adapter=*/seed-0")
    assert json.loads((run / "provenance.json").read_text())["inputs"]["adapter"]


@pytest.mark.parametrize("name", ["full", "ignoring"])
def test_a_run_goes_on_from_its_reference(name, work):
    fit(name, "--model.start", "reference")
    run = f"runs/tiny/{name}@start=reference/seed-0"
    inputs = json.loads(Path(run, "provenance.json").read_text())["inputs"]
    assert inputs["adapter"] == adapter_hash(Path("runs/tiny/reference/seed-0/adapter"))
    by_hand = "runs/tiny/reference/seed-0/adapter"
    fit(name, "--model.adapter", by_hand, "--data.reference", "tiny/reference", "--run.id", "by-hand")
    assert same(adapter(run), adapter("runs/by-hand/seed-0"))
    fit(name)
    assert not same(adapter(run), adapter(f"runs/tiny/{name}/seed-0"))  # control
    assert {folder.name for folder in Path("runs/tiny").glob("reference*")} == {"reference"}
    main(["validate", "--config", f"{run}/fit.yaml"])


def test_a_run_cannot_go_on_from_a_reference_of_another_corpus(work):
    options = ["--model.start", "reference", "--data.corpus.num_train", "39", "--data.reference", "tiny/reference"]
    for store in ([], ["--data.store", "runs/tiny/reference/seed-0/scores"]):
        with pytest.raises(UserError, match="num_train: 40 there, 39 here"):
            fit("full", *options, *store)


def test_a_run_cannot_go_on_from_a_reference_that_is_not_there(work):
    with pytest.raises(UserError, match="from one of them"):
        fit("full", "--model.start", "reference", "--model.adapter", "runs/tiny/reference/seed-0/adapter")
    shutil.rmtree("runs/tiny/reference/seed-0/adapter")
    with pytest.raises(
        UserError, match=r"(?s)holds no trained reference.*fit --config experiments/tiny/reference.yaml"
    ):
        fit("full", "--model.start", "reference")
    with pytest.raises(UserError, match="folder of the reference's adapter"):
        FineTuner("backbone", MeanNLL(), dtype="float32", start="reference").configure_model()


def test_an_empty_split_is_refused(work):
    with pytest.raises(UserError, match="no reference examples"):
        main(["fit", "--config", "experiments/tiny/reference.yaml", "--data.corpus.num_reference", "0"])


def test_a_side_that_d_val_does_not_have_is_not_logged(work):
    fit("forgetting", "--data.forget_fraction", "0.0")
    main(["validate", "--config", "experiments/tiny/forgetting.yaml", "--data.forget_fraction", "0.0"])
    held_out = json.loads(Path("runs/tiny/forgetting@forget_fraction=0.0/seed-0/validation.json").read_text())
    assert set(held_out) == {"validation/nll", "validation/nll_positive", "adapter", "precision"}


def test_a_target_list_that_matches_in_part_is_reported(work, capsys):
    fit("full", "--model.lora.target_modules", "[q_proj, c_fc]")
    assert "match no layer of this backbone: c_fc" in capsys.readouterr().out
    (run,) = Path("runs/tiny").glob("full@*/seed-0")
    assert json.loads((run / "provenance.json").read_text())["unmatched_targets"] == ["c_fc"]


def test_a_backbone_that_the_corpus_does_not_fit_is_refused(work):
    config = json.loads(Path("backbone/config.json").read_text())
    for change, message in [
        ({"max_position_embeddings": 40}, r"has 40 positions.*data.max_length to 40 or less"),
        ({"vocab_size": 100}, r"gives token \d+, but the model's embedding has 100 rows"),
    ]:
        Path("backbone/config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(UserError, match=message):
            fit("full")


def test_a_store_of_another_backbone_is_refused(work):
    write_backbone(work / "other", seed=1)
    options = ["--model.backbone", "other", "--data.store", "runs/tiny/reference/seed-0/scores"]
    with pytest.raises(UserError, match="belongs to another base model"):
        fit("forgetting", *options)


def test_another_configuration_in_the_folder_is_refused(work):
    fit("full")
    file = Path("experiments/tiny/full.yaml")
    file.write_text(file.read_text().replace("learning_rate: 1.0e-2", "learning_rate: 1.0e-3"))
    with pytest.raises(UserError, match=r"model.learning_rate: 0.01 there, 0.001 now"):
        fit("full")


def test_an_overlay_that_changes_where_but_not_what_makes_no_variant(work):
    Path("machine.yaml").write_text("data: {micro_batch_tokens: 128}\ntrainer: {devices: 1}\n")
    Path("file-order.yaml").write_text("data: {shuffle: false}\n")
    fit("full", "--config", "machine.yaml")
    fit("full", "--config", "machine.yaml", "--config", "file-order.yaml")
    assert {path.name for path in Path("runs/tiny").iterdir()} == {"reference", "full", "full@file-order"}


def test_score_wants_a_reference_that_is_trained(work):
    with pytest.raises(UserError, match="score --config experiments/tiny/reference.yaml"):
        main(["score", "--config", "experiments/tiny/forgetting.yaml"])
    shutil.rmtree("runs")
    with pytest.raises(UserError, match="fit --config experiments/tiny/reference.yaml"):
        main(["score", "--config", "experiments/tiny/reference.yaml"])


def test_validate_writes_held_out_nll_by_side(work):
    fit("forgetting")
    main(["validate", "--config", "experiments/tiny/forgetting.yaml"])
    held_out = json.loads(Path("runs/tiny/forgetting/seed-0/validation.json").read_text())
    rows = metrics("tiny/forgetting")
    for name in ("nll", "nll_positive", "nll_negative"):
        assert held_out[f"validation/{name}"] == pytest.approx(float(rows[-1][f"validation/{name}"]), rel=1e-5)


def test_an_unknown_key_is_one_clear_error(work):
    with pytest.raises(UserError, match=r"positive_share.*Did you mean .*data\.positive_fraction\?"):
        fit("forgetting", "--data.positive_share", "0.5")
    assert not Path("runs/tiny/forgetting").exists()


def test_the_saved_configuration_is_whole(work):
    fit("full")
    saved = yaml.safe_load(Path("runs/tiny/full/seed-0/fit.yaml").read_text())
    assert saved["run"]["id"] == "tiny/full"
    assert saved["data"]["batch_size"] == 6
    assert saved["model"]["objective"]["class_path"].endswith("MeanNLL")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("max_length: 64", "max_length: 60", "data.max_length: 64 there, 60 here"),
        (
            "num_train: 40",
            "num_train: 39\n    seed: 1",
            "data.corpus.num_train: 40 there, 39 here; data.corpus.seed: 0",
        ),
        ("path: source.jsonl", "path: copy.jsonl", "data.corpus.sources.made.path: 'source.jsonl' there"),
        ("backbone: backbone", "backbone: nowhere", "model.backbone: 'backbone' there, 'nowhere' here"),
    ],
)
def test_a_corpus_edited_in_one_of_two_files_is_named_before_anything_is_loaded(work, old, new, named):
    corpora = set(Path("corpora").iterdir())
    file = Path("experiments/tiny/forgetting.yaml")
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=named) as error:
        fit("forgetting")
    reference = "experiments/tiny/reference.yaml"
    for remedy in (
        f"{file} and {reference} the same values",
        f"fit --config {reference}",
        f"score --config {reference}",
    ):
        assert remedy in str(error.value)
    assert set(Path("corpora").iterdir()) == corpora
    assert not Path("runs/tiny/forgetting").exists()
    full = Path("experiments/tiny/full.yaml")  # control: what reads no scores may have a corpus of its own
    if "nowhere" not in new and "copy" not in new:
        full.write_text(full.read_text().replace(old, new))
        fit("full")


def test_folders_have_the_names_that_the_command_line_says(work):
    from forgetting.runs.naming import Naming

    Path("file-order.yaml").write_text("data: {shuffle: false}\n")
    options = ["--config", "file-order.yaml", "--model.objective", "MeanNLL", "--model.lora", "{rank: 2}"]
    arguments = ["fit", "--config", "experiments/tiny/forgetting.yaml", *options, "--seed_everything=3"]
    naming = Naming(arguments)
    for command in ("fit", "score"):
        main([command, *naming.arguments_for_reference()])
    main(arguments)
    for run, seed in ((naming.run_id, 3), (naming.reference_id, 0)):
        record = json.loads(Path(f"runs/{run}/seed-{seed}/provenance.json").read_text())
        assert (record["id"], record["seed"]) == (run, seed)
    assert {path.name for path in Path("runs/tiny").iterdir()} == {
        "reference", naming.run_id.removeprefix("tiny/"), naming.reference_id.removeprefix("tiny/"),
    }  # fmt: skip


def test_a_reference_with_a_variant_that_was_edited_since_is_refused(work):
    options = ["--model.learning_rate=1e-3", "--trainer.precision=bf16-mixed"]
    main(["fit", "--config", "experiments/tiny/reference.yaml", *options])
    file = Path("experiments/tiny/reference.yaml")
    file.write_text(file.read_text().replace("rank: 4", "rank: 2"))
    with pytest.raises(UserError, match=r"reference@learning_rate=0.001/seed-0 .*model.lora.rank: 4 there, 2 now"):
        fit("forgetting", *options)


STRONG = """
model:
  objective: {class_path: Forgetting, init_args: {t_max: 0.2, negative: {class_path: TokenNPO, init_args: {beta: 0.3}}}}
"""


def test_an_argument_of_the_class_that_was_replaced_is_not_kept_without_a_word(work):
    """The parser hands an argument on where the new class takes one of that name; the run's name would not say so."""
    Path("strong.yaml").write_text(STRONG)
    overlay = ["--config", "strong.yaml"]
    with pytest.raises(
        UserError,
        match=r"model\.objective is ConstrainedForgetting .*whose t_max 0\.2 it would keep.*model\.objective\.t_max",
    ):
        fit("forgetting", *overlay, "--model.objective", "ConstrainedForgetting")
    with pytest.raises(UserError, match=r"model\.objective\.negative is SequenceNPO .*whose beta 0\.3"):
        fit("forgetting", *overlay, "--model.objective.negative", "SequenceNPO")
    Path("weak.yaml").write_text("data: {score: {class_path: Combination, init_args: {window: 3}}}")
    files = ["--config", "experiments/tiny/forgetting.yaml", "--config", "weak.yaml"]
    for command in ("prepare", "inspect"):  # without a Trainer
        with pytest.raises(UserError, match=r"data\.score is PromptFit .*whose window 3"):
            main([command, *files, "--data.score", "PromptFit"])
    fit("forgetting", *overlay, "--model.objective.negative", "SequenceNPO", "--model.objective.negative.beta", "0.4")
