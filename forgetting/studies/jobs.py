"""A job: one command of a study, what it needs, and whether it is done."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forgetting.errors import UserError

STAGES = ("prepare", "reference", "score", "fit", "evaluate", "evaluate_base")

Key = tuple[str, str]
"""Stage and name of a job."""


@dataclass(frozen=True)
class Job:
    """One command line.

    Attributes:
        stage: One of `STAGES`.
        run_id: Of the run; of a base model the folder of its results; of a corpus a hash of its settings.
        seed: Of the run.
        arguments: The command line after `python -m forgetting`.
        needs: Keys of the jobs that come before it.
        folder: Where its results lie.
        files: The YAML files that it is made from: once one is edited, the job is run again, which keeps what still
            holds and refuses what does not.
        artifact: Returns the file that a job leaves when it went through, and None where that file is not there.
        config: The run's configuration, merged from its files and overrides; empty for a base model.
        label: Protocol and suite, which tell evaluations of one run apart.
    """

    stage: str
    run_id: str
    seed: int
    arguments: tuple[str, ...]
    needs: tuple[Key, ...]
    folder: Path
    files: tuple[Path, ...] = ()
    artifact: Callable[[], Path | None] = field(default=lambda: None, compare=False)
    config: dict[str, Any] = field(default_factory=dict, compare=False)
    label: str = ""

    @property
    def name(self) -> str:
        """Unique among the jobs of its stage, and fit to be a path."""
        run = self.run_id if self.stage in ("prepare", "evaluate_base") else f"{self.run_id}/seed-{self.seed}"
        return f"{self.label}/{run}" if self.label else run

    @property
    def title(self) -> str:
        """In a line of progress."""
        return f"{self.stage.replace('_', ' ')} {self.name}"

    @property
    def key(self) -> Key:
        """Stage and name."""
        return self.stage, self.name

    @property
    def command(self) -> str:
        """The command line as it can be typed."""
        return shlex.join(["python", "-m", "forgetting", *self.arguments])

    def is_done(self) -> bool:
        """Whether the job went through, and none of its files was edited since.

        A corpus is named by its content, which only its job can tell: it is never done, and takes a second where it is
        there already.
        """
        artifact = self.artifact()
        if artifact is None:
            return False
        made = artifact.stat().st_mtime_ns
        return all(file.stat().st_mtime_ns <= made for file in self.files if file.is_file())


def needs_store(config: dict[str, Any]) -> bool:
    """Whether a run reads the scores: it selects tokens, or an objective or a term reads them (a user's own may)."""
    objective = config["model"]["objective"]
    if config["data"].get("positive_fraction") != "all" or _is_own(class_path(objective)):
        return True
    term = (objective.get("init_args") or {}).get("positive") if isinstance(objective, dict) else None
    if term is None:
        return False
    from forgetting.method import terms

    name = class_path(term)
    return _is_own(name) or bool(getattr(terms, name.rsplit(".", 1)[-1]).columns)


def class_path(setting: Any) -> str:
    """The class that a setting names, with its arguments or without."""
    return setting["class_path"] if isinstance(setting, dict) else str(setting)


def _is_own(name: str) -> bool:
    return "." in name and not name.startswith("forgetting.")


def add_job(jobs: dict[Key, Job], job: Job) -> None:
    """Add a job; one that several rows need is added once, and scores as much as any of them asks for.

    Raises:
        UserError: It evaluates a run on another suite of the same name.
    """
    existing = jobs.setdefault(job.key, job)
    if job.stage == "score" and job.config["data"].get("promptless"):
        jobs[job.key] = job
    if _suite(existing) != _suite(job):
        raise UserError(
            f"`{existing.command}` and `{job.command}` evaluate one run on two suites of one name. Rename one of them."
        )


def _suite(job: Job) -> str | None:
    return job.arguments[job.arguments.index("--suite") + 1] if "--suite" in job.arguments else None
