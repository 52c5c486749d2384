"""Runs the jobs of a plan in this process, one after the other: resumable, and a failed job leaves the others."""

import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from forgetting.arguments import base_files
from forgetting.errors import UserError
from forgetting.evaluation.command import evaluate_command
from forgetting.runs.prepare import prepare_command
from forgetting.runs.trainer_cli import TrainerCLI
from forgetting.studies.jobs import Job, Key
from forgetting.studies.progress import Progress, output_in_file


@dataclass(frozen=True)
class Failure:
    """A job that did not go through.

    Attributes:
        job: The job.
        reason: The command's own message, or the job that it would have needed.
        log: What it printed; None where it was skipped.
    """

    job: Job
    reason: str
    log: Path | None

    def __str__(self) -> str:
        where = "" if self.log is None else f" What it printed is in {self.log}."
        return f"{self.job.title}: {self.reason}{where}"


def run_jobs(jobs: Sequence[Job], logs: Path, console: Console | None = None) -> list[Failure]:
    """Run jobs in their order.

    Args:
        jobs: Each after those that it needs; what a job needs beside them is done.
        logs: Folder of what they print, a file per job.
        console: Shows the progress; None is stderr.

    Returns:
        The jobs that failed, and those that were skipped since they need one that failed.

    Raises:
        UserError: A job would start processes of its own.
    """
    refuse_several_devices(jobs)
    progress = Progress(len(jobs), console or Console(stderr=True))
    failures: dict[Key, Failure] = {}
    with progress:
        progress.say(f"{len(jobs)} jobs; what they print goes to {logs}")
        for job in jobs:
            if failed := next((failures[need] for need in job.needs if need in failures), None):
                failures[job.key] = Failure(job, f"skipped, for it needs {failed.job.title}", None)
                progress.done += 1
                continue
            log = log_of(job, logs)
            try:
                with progress.job(job.title), output_in_file(log):
                    run_job(job)
            except Exception as error:  # noqa: BLE001 - like a process of its own, a job ends without the others
                if not isinstance(error, UserError):
                    with log.open("a", encoding="utf-8") as file:
                        traceback.print_exc(file=file)
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                failures[job.key] = Failure(job, reason, log)
                progress.say(f"error: {failures[job.key]}")
            _free_memory()
    return list(failures.values())


def run_job(job: Job) -> None:
    """Run one command line."""
    name, *arguments = job.arguments
    if name == "prepare":
        prepare_command(arguments)
    elif name == "evaluate":
        evaluate_command([*arguments, "--quiet"])
    else:
        quiet = [name, *arguments, "--trainer.enable_progress_bar=false"]
        TrainerCLI(quiet, base_files(quiet))


def log_of(job: Job, logs: Path) -> Path:
    """The file of what a job prints."""
    return logs / job.stage / f"{job.name}.log"


def refuse_several_devices(jobs: Sequence[Job]) -> None:
    """Refuse jobs that would start a process per device: those would run this whole command again.

    Raises:
        UserError: A job has several devices.
    """
    for job in jobs:
        trainer = job.config.get("trainer") or {}
        devices, accelerator = trainer.get("devices", "auto"), trainer.get("accelerator", "auto")
        if str(devices) in ("auto", "-1"):
            number = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 1
        else:
            number = len(devices) if isinstance(devices, list) else int(devices)
        if number > 1 or int(trainer.get("num_nodes") or 1) > 1:
            raise UserError(
                f"`{job.command}` would run on {number} devices, and `table --run` runs its jobs in one process. Lay "
                "--config configs/machines/one-gpu.yaml over the study, or run it with experiments/Snakefile, which "
                "starts a process per device."
            )


def _free_memory() -> None:
    gc.collect()  # a model of the harness holds itself, and the next job needs its memory
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
