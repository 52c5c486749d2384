"""The Snakefile run for real, on a small corpus and a model of a few thousand parameters: killed, resumed, shared."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import write_backbone
from small_suite import write_suite

from forgetting.cli import main
from forgetting.studies.plan import Plan
from forgetting.studies.results import RunFolders
from forgetting.studies.spec_file import load_study

pytest.importorskip("snakemake", reason="Snakemake is in the extra `experiments`")
pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parent.parent
FORMS = ("md", "tex", "csv", "html")

RUN = """
run: {{checkpoint_every_n_steps: 1}}
trainer: {{accelerator: cpu, devices: 1, precision: 32-true, enable_progress_bar: false}}
model:
  backbone: backbone
  dtype: float32
  lora: {{rank: 4}}
  learning_rate: 1.0e-2
  objective: {{class_path: {objective}}}
data:
  corpus:
    sources:
      made: {{path: source.jsonl, prompt: "{{question}}", response: "{{answer}}"}}
    num_train: {num_train}
    num_reference: 12
    num_validation: 4
  max_length: 64
  batch_size: 2
  split: {split}
  micro_batch_tokens: 64
"""
TABLE = """
title: Small
caption: A table of one method.
suite: small.yaml
columns: [Sums, AVG]
groups:
  - name: Tiny
    rows:
      - {name: Base, base: backbone}
      - {name: Forgetting, run: tiny/forgetting}
"""
COUNTS = """
title: Counts
caption: What the corpus is made of.
corpus: tiny/forgetting
columns: [samples, percent, reference samples, reference percent]
groups:
  - name: Corpus
    rows: [{name: Made, source: made, paper: [120, 100, 12, 100]}]
"""
TIMES = """
title: Times
caption: How long the stages took.
decimals: 4
columns: [Tiny]
groups:
  - name: Stages
    rows:
      - {name: Reference, stage: fit, runs: [tiny/reference]}
      - {name: Scores, stage: score, runs: [tiny/reference]}
      - {name: Training, stage: fit, runs: [tiny/forgetting]}
      - {name: Total, total: [Reference, Scores, Training]}
"""


def write_work(folder: Path, num_train: int) -> None:
    """A folder with the repository's workflow over experiments of its own."""
    experiments = folder / "experiments"
    (experiments / "tables").mkdir(parents=True)
    (experiments / "tiny").mkdir()
    for name in ("Snakefile", "gpu.py"):
        shutil.copy(REPOSITORY / "experiments" / name, experiments)
    shutil.copytree(REPOSITORY / "experiments/profiles", experiments / "profiles")
    (experiments / "tables/small.yaml").write_text(TABLE)
    (experiments / "tables/counts.yaml").write_text(COUNTS)
    (experiments / "tables/times.yaml").write_text(TIMES)
    for name, objective, split in [("reference", "MeanNLL", "reference"), ("forgetting", "Forgetting", "train")]:
        text = RUN.format(objective=objective, split=split, num_train=num_train)
        (experiments / f"tiny/{name}.yaml").write_text(text)
    lines = [{"question": f"{i} plus {i % 7}?", "answer": f" It is {i + i % 7}."} for i in range(num_train + 20)]
    (folder / "source.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_suite(folder, lines[:6])
    write_backbone(folder / "backbone")


def snakemake(
    folder: Path, *arguments: str, targets: Sequence[str] = ("small",), **variables: str
) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "snakemake", "-s", "experiments/Snakefile"]
    command = [*start, "-c", "1", *targets, *([] if "--config" in arguments else ["--config", "seeds=1"])]
    environment = (
        os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""} | variables
    )
    return subprocess.Popen([*command, *arguments], cwd=folder, env=environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


def declare_done(folder: Path) -> None:
    """Tell Snakemake that the scores are there, and what they are made from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        plan = Plan(load_study(Path("experiments/tables/small.yaml")), RunFolders())
        for stage, name in plan.jobs:
            if stage in ("prepare", "reference", "score"):
                file = Path(f"runs/.done/{stage}/{name}.done")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.touch()


def without_snakemake(folder: Path) -> None:
    """All of the table's runs by `table --run`, and its files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = ["table", "experiments/tables/small.yaml"]
        main([*study, "--seeds", "1", "--run"])
        files = [f"runs/tables/small.{form}" for form in FORMS]
        main([*study, "--protocol", "corrected", "--runs", "runs", "--output", *files])  # as the page quotes it


def test_a_killed_table_is_resumed_to_the_numbers_of_the_command(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_work(whole, num_train=120)
    without_snakemake(whole)
    shutil.copytree(whole, killed)  # with corpus, reference and store
    for made in ("runs/tiny/forgetting", "runs/tables"):
        shutil.rmtree(killed / made)
    declare_done(killed)

    process = snakemake(killed)
    checkpoint = killed / "runs/tiny/forgetting/seed-0/checkpoints/last.ckpt"
    deadline = time.monotonic() + 240
    while not checkpoint.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # no farewell for anyone
    process.communicate()
    assert checkpoint.is_file()
    assert not (killed / "runs/tiny/forgetting/seed-0/adapter").exists()
    assert not list((killed / "runs/.done/fit").rglob("*.done"))
    stored = (killed / "runs/tiny/reference/seed-0/scores/manifest.json").stat().st_mtime_ns

    finish(snakemake(killed, "--unlock"))
    said = finish(snakemake(killed))
    assert "rule score" not in said
    assert (killed / "runs/tiny/reference/seed-0/scores/manifest.json").stat().st_mtime_ns == stored
    log = (killed / "runs/logs/fit/tiny/forgetting/seed-0.log").read_text()
    assert "resuming from" in log
    weights = "runs/tiny/forgetting/seed-0/adapter/adapter_model.safetensors"
    assert (whole / weights).read_bytes() == (killed / weights).read_bytes()
    for form in FORMS:
        assert (whole / f"runs/tables/small.{form}").read_text() == (killed / f"runs/tables/small.{form}").read_text()

    said = finish(snakemake(killed, targets=("small", "counts", "times")))
    assert "Nothing is left." in said
    assert "3 of 3 steps (100%) done" in said  # the tables themselves
    assert "| Made | ours       |     120 |  100.00 |" in (killed / "runs/tables/counts.md").read_text()
    rows = csv.DictReader((killed / "runs/tables/times.csv").read_text().splitlines())
    shown = {row["row"]: 60 * float(row["ours"]) for row in rows}
    reference, training = (json.loads((killed / f"runs/tiny/{name}/seed-0/cost.json").read_text())
                           for name in ("reference", "forgetting"))  # fmt: skip
    spent = [sum(entry["seconds"] for entry in entries if entry["stage"] == stage)
             for entries, stage in ((reference, "fit"), (reference, "score"), (training, "fit"))]  # fmt: skip
    assert list(shown.values()) == pytest.approx([*spent, sum(spent)])


def test_a_failed_job_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    write_work(tmp_path, num_train=20)
    (tmp_path / "source.jsonl").write_text("{}\n")
    process = snakemake(tmp_path)
    said, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "error: " in said  # the failed command's own words
    done = [file.relative_to(tmp_path / "runs/.done").parts[0] for file in (tmp_path / "runs/.done").rglob("*.done")]
    assert set(done) <= {"evaluate_base"}  # which does not need the corpus
    assert not (tmp_path / "runs/tables/small.md").exists()


JOBSTEP = {
    "SLURM_JOB_ID": "1234", "SLURM_JOBID": "1234", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "1", "SLURM_NPROCS": "1",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "1",
    "SLURM_JOB_NAME": "snakejob", "SLURM_JOB_NODELIST": "localhost", "SLURM_NODELIST": "localhost",
    "SLURM_TASKS_PER_NODE": "1", "SLURM_GPUS": "2",
}  # fmt: skip
"""What `srun -n1` gives to a rule of a job with two GPUs."""
MACHINE = "trainer: {accelerator: cpu, devices: 2, strategy: ddp}\n"


def test_a_rule_that_slurm_starts_as_one_task_runs_on_all_its_devices(tmp_path: Path) -> None:
    work = tmp_path / "a folder"  # with a space
    work.mkdir()
    write_work(work, num_train=20)
    (work / "machine.yaml").write_text(MACHINE)
    settings = ["--config", "seeds=1", "gpus=2", "machine=machine.yaml", f"runs={work / 'my runs'}"]
    finish(snakemake(work, *settings, "--until", "score", **JOBSTEP))  # one rule makes all stages
    assert "2 process(es)" in (work / "my runs/logs/reference/tiny/reference/seed-0.log").read_text()
    costs = [entry for file in (work / "my runs/tiny").rglob("cost.json") for entry in json.loads(file.read_text())]
    devices = {(entry["stage"], entry["num_devices"]) for entry in costs if "num_devices" in entry}
    assert devices == {("fit", 2), ("score", 2)}


def test_the_slurm_profile_submits_a_job_with_its_resources(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="the plugin is in the extra `experiments`")
    write_work(tmp_path, num_train=20)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, script in {
        "sbatch": 'printf "%s\\n" "$@" >> submitted; exit 1',  # a cluster that notes what it is asked, and refuses
        "sinfo": "echo gpu", "sacctmgr": "echo default", "scontrol": "true", "sacct": "true", "squeue": "true",
    }.items():  # fmt: skip
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    declare_done(tmp_path)
    arguments = ["--profile", "experiments/profiles/slurm", "--until", "fit", "--retries", "0", "--jobs", "1"]
    process = snakemake(tmp_path, *arguments, PATH=f"{tools}:{os.environ['PATH']}")
    said, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    submitted = (tmp_path / "submitted").read_text()
    for expected in ("-A\ndefault", "-p\ngpu", "-t\n1440", "--mem\n64000", "--cpus-per-task=8", "--gpus=1"):
        assert f"\n{expected}\n" in submitted, said
    assert "fit:name=tiny/forgetting/seed-0" in submitted
