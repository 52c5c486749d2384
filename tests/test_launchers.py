"""Several ranks, started by us or by a cluster: those that were asked for run, and all leave at the same step."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from processes import LAUNCHERS, Forked, finish, free_port, in_process, on_ranks
from small_experiment import METHOD, REFERENCE, RUN, STEPS, adapter_bytes, metrics, signal_at

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.runs.checkpoints import steps_in_checkpoint

pytestmark = pytest.mark.slow
FIT = ["fit", "--config", METHOD]
DDP = ["--trainer.devices=2", "--trainer.strategy=ddp"]
SHARDED = ["--trainer.devices=2", "--trainer.strategy=sharded"]


@pytest.fixture
def work(scored_work: Path) -> Path:
    return scored_work


def environment() -> dict[str, str]:
    """Ours, without what an outer launcher may have left in it; the tests' callbacks can be imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    here = str(Path(__file__).parent)
    path = os.pathsep.join([here, *filter(None, [kept.get("PYTHONPATH")])])
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """The real command line, which starts the other ranks itself."""
    command = [sys.executable, "-m", "forgetting", *arguments]
    return subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def started_by_us(arguments: Sequence[str]) -> tuple[int, str]:
    """Status and output of the real command line and its ranks."""
    process = start(arguments)
    try:
        output, _ = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def started_by_a_launcher(arguments: Sequence[str]) -> tuple[int, str]:
    """Status and output of the first of two ranks."""
    return on_ranks(arguments, 2)[0]


@pytest.mark.parametrize(("launch", "ranks"), [(started_by_us, DDP), (started_by_a_launcher, SHARDED)])
def test_two_ranks_terminated_in_the_middle_resume_to_the_bytes_of_an_uninterrupted_run(work, launch, ranks):
    options = [*FIT, *ranks, "--data.num_workers=1", "--run.checkpoint_every_n_steps=100"]
    status, said = started_by_a_launcher(options)
    assert status == 0, said[-3000:]
    whole, rows = adapter_bytes(), metrics()
    assert len(rows) == STEPS
    shutil.rmtree(RUN)
    # Only one rank gets the signal, and it is not the first.
    status, said = launch([*options, *signal_at(number=int(signal.SIGTERM), step=5, rank=1)])
    assert status != 0, said[-3000:]
    assert steps_in_checkpoint(RUN / "checkpoints/last.ckpt") == 5
    assert not (RUN / "adapter").exists()
    status, said = started_by_a_launcher(options)
    assert status == 0, said[-3000:]
    assert "resuming from" in said
    assert said.count("trained in ") == 1  # the first rank alone says it
    assert adapter_bytes() == whole
    assert metrics() == rows


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads Linux's /proc")
def test_a_rank_does_not_outlive_the_process_that_started_it(work):
    """Killed before the ranks have found each other, where the other one waits for it."""
    process = start([*FIT, *DDP])
    deadline = time.monotonic() + 120
    while not (started := children(process.pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.kill()
    process.wait()  # not for its output: the rank that it leaves behind holds that open
    assert process.stdout is not None
    process.stdout.close()
    assert started
    deadline = time.monotonic() + 60
    while (left := [pid for pid in started if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def slurm(rank: int, num_tasks: int, **more: str) -> dict[str, str]:
    """What `srun` gives each task of a job step on one node."""
    return {
        "SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "forgetting", "SLURM_NTASKS": str(num_tasks),
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_NNODES": "1",
        "SLURM_JOB_NUM_NODES": "1", "SLURM_NODELIST": "localhost", "SLURM_JOB_NODELIST": "localhost",
        "SLURM_STEP_ID": "0", "MASTER_ADDR": "127.0.0.1", **more,
    }  # fmt: skip


def test_one_task_for_two_devices_is_refused(work, monkeypatch):
    """As a workflow's executor starts a rule: one task, whatever the devices."""
    for name, value in slurm(0, 1, SLURM_NTASKS_PER_NODE="1").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="number of tasks per node|need 2 processes, but the launcher"):
        main([*FIT, *DDP])
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match=r"need 2 processes, but the launcher \(SLURMEnvironment\) started 1"):
        main([*FIT, *DDP])
    assert not RUN.exists()


def test_a_slurm_job_of_two_tasks_is_signaled_and_submitted_again(work):
    """As `sbatch --ntasks-per-node 2 --signal=…` with `srun`; the signal reaches one task first."""
    options = [*FIT, *DDP, "--run.checkpoint_every_n_steps=100"]

    def job(*more: str) -> list[tuple[int, str]]:
        port = free_port()
        tasks = [slurm(rank, 2, SLURM_NTASKS_PER_NODE="2", MASTER_PORT=port) for rank in range(2)]
        return finish(*(Forked([*options, *more], variables=task) for task in tasks))

    for number, step in ((signal.SIGUSR1, 4), (signal.SIGTERM, 9)):
        ended = job(*signal_at(number=int(number), step=step, rank=1))
        assert ended[1][0] == 128 + number, ended[1][1][-3000:]
        assert ended[0][0] != 0
        assert "2 process(es)" in ended[0][1]
        assert steps_in_checkpoint(RUN / "checkpoints/last.ckpt") == step
    assert not list(Path("runs").rglob("hpc_ckpt*"))
    ended = job()
    assert [status for status, _ in ended] == [0, 0], ended[0][1][-3000:]
    resumed = adapter_bytes()
    shutil.rmtree(RUN)
    ended = job()
    assert [status for status, _ in ended] == [0, 0]
    assert adapter_bytes() == resumed


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_nothing_is_loaded_that_was_not_asked_for(work, monkeypatch, number):
    """A checkpoint that lies in the run's folder under the name that Lightning gives its own on SLURM."""
    for name, value in slurm(0, 1).items():
        monkeypatch.setenv(name, value)
    main(FIT)
    validate, score = ["validate", "--config", METHOD], ["score", "--config", REFERENCE]
    main(validate)
    reference = Path("runs/tiny/reference/seed-0")
    held_out = (RUN / "validation.json").read_bytes()
    scores = {path.name: path.read_bytes() for path in (reference / "scores/train").iterdir()}
    for run in (RUN, reference):  # of an earlier step of the same run: nothing but its weights is wrong
        shutil.copy(RUN / "checkpoints/previous.ckpt", run / "hpc_ckpt_1.ckpt")
    shutil.rmtree(reference / "scores")
    assert in_process([*score, *signal_at(number=int(number), on="predict")]) == 128 + number
    main(score)
    assert in_process([*validate, *signal_at(number=int(number), on="validation")]) == 128 + number
    main(validate)
    assert (RUN / "validation.json").read_bytes() == held_out
    assert {path.name: path.read_bytes() for path in (reference / "scores/train").iterdir()} == scores
    whole = adapter_bytes()
    shutil.rmtree(RUN / "adapter")
    shutil.rmtree(RUN / "checkpoints")
    main(FIT)  # from the beginning, not from the checkpoint that lies there
    assert adapter_bytes() == whole
