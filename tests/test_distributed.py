"""Several processes compute what one computes: DDP, sharding (FSDP2) and two nodes, over gloo on CPUs."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed
from conftest import write_backbone
from processes import LAUNCHERS, free_port, in_process, on_ranks
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

from forgetting.method.store import ScoreStore
from forgetting.model.backbone import load_backbone
from forgetting.model.batch import MicroBatch, pad
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora
from forgetting.model.sharding import shard_model

EXPERIMENT = """
run: {{checkpoint_every_n_steps: 2}}
trainer: {{accelerator: cpu, devices: 1, precision: 32-true, enable_progress_bar: false}}
model:
  backbone: backbone
  dtype: float32
  lora: {{rank: 4, dropout: 0.0}}
  learning_rate: 1.0e-2
  objective: {{class_path: {objective}}}
data:
  corpus:
    sources:
      made: {{path: source.jsonl, prompt: "{{question}}", response: "{{answer}}"}}
    num_train: 21
    num_reference: 9
    num_validation: 5
  max_length: 64
  batch_size: 8
  shard_size: 4
  split: {split}
"""
REFERENCE, METHOD = "experiments/tiny/reference.yaml", "experiments/tiny/forgetting.yaml"
DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]


def write_experiments(folder: Path) -> Path:
    write_backbone(folder / "backbone")
    rows = [{"question": f"What is {i} plus {i % 7}?", "answer": "so " * (i % 9) + f"{i + i % 7}"} for i in range(50)]
    (folder / "source.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "experiments/tiny").mkdir(parents=True)
    (folder / REFERENCE).write_text(EXPERIMENT.format(objective="MeanNLL", split="reference"))
    (folder / METHOD).write_text(EXPERIMENT.format(objective="Forgetting", split="train"))
    return folder


def environment(**more: str) -> dict[str, str]:
    """Ours, without what an outer launcher may have left in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **more}


def forgetting(folder: Path, *arguments: str, ranks: int = 2) -> str:
    """What the first of several ranks prints."""
    ended = on_ranks(arguments, ranks, folder)
    assert [status for status, _ in ended] == [0] * ranks, "\n".join(output[-3000:] for _, output in ended)
    return ended[0][1]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one process has done everything."""
    folder = write_experiments(tmp_path_factory.mktemp("alone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for arguments in (
            ["fit", "--config", REFERENCE],
            ["score", "--config", REFERENCE],
            ["fit", "--config", METHOD],
        ):
            assert in_process(arguments) == 0
    return folder


def assert_same_adapter(folder: Path, expected: Path, run: str) -> None:
    file = f"runs/tiny/{run}/seed-0/adapter/adapter_model.safetensors"
    ours, theirs = load_file(folder / file), load_file(expected / file)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)


def assert_same_scores(folder: Path, expected: Path) -> None:
    ours, theirs = (ScoreStore.open(f / "runs/tiny/reference/seed-0/scores") for f in (folder, expected))
    assert [s["file"] for s in ours.manifest["shards"]] == [s["file"] for s in theirs.manifest["shards"]]
    for split in theirs.splits:
        for column in ("nll_base", "nll_reference"):
            a, b = (store.split(split).column(column) for store in (ours, theirs))
            assert a.shape == b.shape
            assert np.abs(a - b).max() < 1e-5


def metrics(folder: Path) -> list[dict[str, str]]:
    text = (folder / "runs/tiny/forgetting/seed-0/metrics.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.slow
def test_ddp_on_two_ranks_ends_where_one_process_ends(alone, tmp_path):
    folder = write_experiments(tmp_path)
    forgetting(folder, "fit", "--config", REFERENCE, *DDP)
    assert_same_adapter(folder, alone, "reference")
    # From the same reference the scores are equal, and from these the same tokens are positive.
    shutil.rmtree(folder / "runs")
    shutil.copytree(alone / "runs/tiny/reference", folder / "runs/tiny/reference")
    shutil.rmtree(folder / "runs/tiny/reference/seed-0/scores")
    forgetting(folder, "score", "--config", REFERENCE, *DDP)
    assert_same_scores(folder, alone)
    forgetting(folder, "fit", "--config", METHOD, *DDP)
    assert_same_adapter(folder, alone, "forgetting")
    ours, theirs = metrics(folder), metrics(alone)
    assert [row["step"] for row in ours] == [row["step"] for row in theirs] == ["0", "1", "2"]
    for a, b in zip(ours, theirs, strict=True):
        for name in ("train/loss", "train/nll_positive", "train/nll_negative", "train/gradient_norm"):
            assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-4), name
    assert float(ours[-1]["validation/nll"]) == pytest.approx(float(theirs[-1]["validation/nll"]), rel=1e-4)


ONE_RUN = [
    "--data.positive_fraction=all", "--model.objective=OnlineForgetting", "--model.objective.warmup_fraction=0.3",
    "--model.objective.start=0.3",
]  # fmt: skip
CONSTRAINT = ["--model.objective=ConstrainedForgetting", "--model.objective.memory=1.0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "strategy"),
    [(ONE_RUN, "ddp"), (CONSTRAINT, "ddp"), (ONE_RUN, "sharded")],
    ids=["one run", "constraint", "one run sharded"],
)
def test_state_from_a_steps_sums_is_the_same_on_two_ranks(alone, tmp_path, options, strategy):
    """Both look at what other ranks have seen: the threshold and λ of a step follow from the sums of all."""
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    for root in ("one", "two"):
        shutil.copytree(alone / "runs/tiny/reference", tmp_path / root / "tiny/reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert in_process(["fit", "--config", METHOD, *options, "--run.root", "one"]) == 0
    forgetting(tmp_path, "fit", "--config", METHOD, *options, "--run.root", "two", *DDP[:-1], strategy)
    (ours,), (theirs,) = (list((tmp_path / root / "tiny").glob("forgetting@*/seed-0")) for root in ("two", "one"))
    states = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in (ours, theirs)
    ]
    assert states[0].keys() == states[1].keys()
    assert any(name.startswith("objective.") for name in states[0])
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_two_nodes_of_one_process_end_where_one_process_ends(alone, tmp_path):
    """torchrun as docs/distributed.md has it, with two 'nodes' on this machine."""
    folder, port = write_experiments(tmp_path), free_port()
    nodes = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port]
    fit = ["-m", "forgetting", "fit", "--config", REFERENCE, "--trainer.num_nodes", "2", "--trainer.strategy", "ddp"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", *nodes]
    processes = [
        subprocess.Popen(
            [*torchrun, "--node_rank", str(node), *fit], cwd=folder, env=environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for node in range(2)
    ]  # fmt: skip
    for process in processes:
        output, _ = process.communicate(timeout=500)
        assert process.returncode == 0, output[-3000:]
    assert_same_adapter(folder, alone, "reference")


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_sharding_through_the_trainer_ends_where_one_process_ends(alone, tmp_path, num_ranks):
    folder = write_experiments(tmp_path)
    sharded = ["--trainer.devices", str(num_ranks), "--trainer.strategy", "sharded"]
    every_step = ["--run.checkpoint_every_n_steps", "1"]
    forgetting(folder, "fit", "--config", REFERENCE, *sharded, *every_step, ranks=num_ranks)
    assert_same_adapter(folder, alone, "reference")
    # A run whose adapter was not written yet goes on from its checkpoint.
    shutil.rmtree(folder / "runs/tiny/reference/seed-0/adapter")
    assert "resuming from" in forgetting(folder, "fit", "--config", REFERENCE, *sharded, *every_step, ranks=num_ranks)
    assert_same_adapter(folder, alone, "reference")
    forgetting(folder, "score", "--config", REFERENCE, *sharded, ranks=num_ranks)
    assert_same_scores(folder, alone)


@pytest.mark.slow
def test_ranks_that_would_each_train_alone_are_refused(tmp_path):
    folder = write_experiments(tmp_path)
    strategy = "lightning.pytorch.strategies.ModelParallelStrategy"  # tensor parallel within a node, unless told
    arguments = [
        "fit", "--config", REFERENCE, "--trainer.devices", "2", "--trainer.strategy", strategy,
        "--trainer.strategy.save_distributed_checkpoint", "false",
    ]  # fmt: skip
    for status, said in on_ranks(arguments, 2, folder):
        assert status == 70, said[-3000:]
        assert "UserError" in said
        assert "tensor_parallel_size is 2" in said
        assert "--trainer.strategy sharded" in said
    assert not (folder / "runs/tiny/reference/seed-0/adapter").exists()


def language_model(folder: Path) -> LanguageModel:
    model = add_lora(load_backbone(str(folder), dtype="float32"), Lora(rank=4, dropout=0.0), seed=0)
    with torch.no_grad():
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return LanguageModel(model)


def batch(rank: int) -> MicroBatch:
    generator = np.random.default_rng(rank)
    sequences = [(generator.integers(2, 258, n).astype(np.int32), np.arange(n) > n // 3) for n in (20, 9, 14)]
    return pad(sequences if rank < 2 else [])


def compare_sharded_with_whole(rank: int, num_ranks: int, port: str, folder: Path) -> None:
    """In each rank: nll of its own batch, and the gradient averaged over ranks, sharded and not."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=num_ranks)
    whole, sharded = language_model(folder), language_model(folder)
    shard_model(sharded, init_device_mesh("cpu", (num_ranks,), mesh_dim_names=("data_parallel",)))
    nll = sharded(batch(rank))
    torch.testing.assert_close(nll, whole(batch(rank)), rtol=1e-5, atol=1e-5)
    nll.sum().backward()
    sum(whole(batch(r)).sum() for r in range(num_ranks)).backward()  # type: ignore[union-attr]
    expected = {name: p.grad / num_ranks for name, p in whole.named_parameters() if p.grad is not None}
    found = {name: p.grad.full_tensor() for name, p in sharded.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_sharded_model_computes_what_the_whole_one_computes(tiny_llama, num_ranks):
    arguments = (num_ranks, free_port(), tiny_llama)
    torch.multiprocessing.start_processes(compare_sharded_with_whole, arguments, num_ranks, start_method="fork")
