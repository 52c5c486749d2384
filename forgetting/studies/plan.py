"""From a study to its jobs: which runs its rows are, in which repetitions, and what has to be run for them.

Nothing here runs anything. The command `table` runs the jobs one after the other, `experiments/Snakefile` on a cluster.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from forgetting.artifacts import write_text
from forgetting.errors import UserError
from forgetting.evaluation.naming import base_folder
from forgetting.evaluation.suite import suite_path
from forgetting.paths import EXPERIMENTS
from forgetting.run_folder import seed_folders
from forgetting.studies.job_builder import JobBuilder
from forgetting.studies.jobs import Job, Key, add_job
from forgetting.studies.results import RunFolders
from forgetting.studies.spec import INLINE, BaseModel, Repetition, Row, Runs, Stage, Study


@dataclass(frozen=True)
class PlannedRun:
    """A row in one repetition: a run, or a base model.

    Attributes:
        repetition: The repetition.
        folder: Where its results lie.
        jobs: Keys of its own jobs, in their order: what it shares with other runs is not among them.
    """

    repetition: Repetition
    folder: Path
    jobs: tuple[Key, ...]


class Plan:
    """The jobs of a study.

    Args:
        study: Rows and repetitions.
        runs: Where runs lie, and the protocol of their evaluation.
        overlays: Files laid over every row, after the study's own.
        seeds: Seeds of the runs, in place of the study's.
        machine: Files that say where and how runs are computed: an edit of one runs nothing again.

    Raises:
        UserError: A row names an experiment or an overlay that is not there.
    """

    def __init__(
        self, study: Study, runs: RunFolders, overlays: Sequence[Path] = (), seeds: Sequence[int] | None = None,
        machine: Sequence[Path] = (),
    ) -> None:  # fmt: skip
        if study.repeats and seeds:
            raise UserError(f"{study.path} is repeated over {len(study.repeats)} overlays: leave the seeds out.")
        self.study, self.runs = study, runs
        self.overlays = (*study.overlays, *overlays)
        self.seeds_are_given = seeds is not None
        repetitions = study.repeats or [Repetition(f"seed-{seed}", seed) for seed in seeds or study.seeds]
        repetitions = [replace(repetition, suite=repetition.suite or study.suite) for repetition in repetitions]
        self.repetitions = repetitions
        experiments = study.experiments if study.config is None else write_inline(study, study.config, runs.root)
        self._builder = JobBuilder(study.path, experiments, runs, self.overlays, machine)
        self.jobs = self._builder.jobs
        self.targets: dict[Key, None] = {}
        self._timed: dict[tuple[str, str], Key] = {}
        self._planned: dict[tuple[str, str], list[PlannedRun]] = {}
        for repetition in repetitions:
            for group, row in study.rows():
                earlier = self._planned.setdefault((group.name, row.name), [])
                planned = self._plan(row, repetition, earlier)
                earlier += planned
                self.targets |= dict.fromkeys(run.jobs[-1] for run in planned)
        self.corpus: Key | None = None
        if study.corpus is not None:
            corpus = self.corpus = self._builder.prepare(self._builder.options(study.corpus, (), repetitions[0]))
            self.targets[corpus] = None

    def of(self, group: str, row: str) -> list[PlannedRun]:
        """The runs of a row, one per repetition."""
        return self._planned[group, row]

    def further_seeds(self, group: str, row: str) -> list[PlannedRun]:
        """Runs of a row whose seeds the study does not name, but which are there; none where seeds were given."""
        planned = self.of(group, row)
        if self.seeds_are_given or not planned or planned[0].repetition.seed is None or not planned[0].jobs:
            return []
        folders = seed_folders(planned[0].folder.parent)
        known = {run.folder for run in planned}
        return [
            PlannedRun(Repetition(f.name, int(f.name.removeprefix("seed-")), None, self.study.suite), f, ())
            for f in folders
            if f not in known
        ]

    def timed(self, stage: str, experiment: str) -> tuple[Job, list[Path]]:
        """The job whose time a row shows, and the folders of its experiment's seeds."""
        job = self.jobs[self._timed[stage, experiment]]
        if job.stage == "fit" and self.seeds_are_given:
            return job, [job.folder.with_name(repetition.name) for repetition in self.repetitions]
        return job, seed_folders(job.folder.parent)

    def refuse_missing_suites(self) -> None:
        """Refuse to run what could not be evaluated.

        Raises:
            UserError: The file of a suite is not there.
        """
        for suite in dict.fromkeys(r.suite for r in self.repetitions if self.study.is_evaluated and r.suite):
            if not suite_path(suite).is_file():
                raise UserError(f"{self.study.path}: there is no suite {suite_path(suite)}.")

    def pending(self) -> list[Job]:
        """Jobs that are not done, each after those that it needs.

        What only finished jobs need is not looked at: a reference may be gone once all its runs are trained.
        """
        ordered: dict[Key, Job] = {}
        seen: set[Key] = set()

        def visit(key: Key) -> None:
            if key in seen:
                return
            seen.add(key)
            job = self.jobs[key]
            if not job.is_done():
                for need in job.needs:
                    visit(need)
                ordered[key] = job

        for key in self.targets:
            visit(key)
        return list(ordered.values())

    # --- rows --------------------------------------------------------------------------------------------------------

    def _plan(self, row: Row, repetition: Repetition, earlier: list[PlannedRun]) -> list[PlannedRun]:
        builder = self._builder
        match row.origin:
            case Runs(experiment, overrides):
                fit = self.jobs[builder.fit(builder.options(experiment, overrides, repetition), repetition)]
                evaluation = (builder.evaluate(fit, repetition),) if self.study.is_evaluated else ()
                return [PlannedRun(repetition, fit.folder, (fit.key, *evaluation))]
            case BaseModel(target) if self.study.is_evaluated:
                config = self._shared_config(repetition)
                model = target or str(config["model"]["backbone"])
                folder = self.runs.root / base_folder(model)
                if folder in {run.folder for run in earlier}:  # the same model again: one result, not several
                    return []
                return [PlannedRun(repetition, folder, (builder.evaluate_base(model, folder, config, repetition),))]
            case Stage(stage, experiments) if repetition is self.repetitions[0]:
                for experiment in experiments:
                    options = builder.options(experiment, (), repetition)
                    key = builder.score(options) if stage == "score" else builder.fit(options, repetition)
                    self.targets[key] = None
                    self._timed[stage, experiment] = key
        return []

    def _shared_config(self, repetition: Repetition) -> dict[str, Any]:
        """Configuration of the study's first run; empty where it has none."""
        for _, row in self.study.rows():
            if isinstance(row.origin, Runs):
                options = self._builder.options(row.origin.experiment, row.origin.overrides, repetition)
                return self._builder.naming(options).config
        return {}


def write_inline(study: Study, config: dict[str, Any], root: Path) -> Path:
    """Write a study's own `config` as the experiments `<study>/run` and `<study>/reference`; what is the same is left.

    Returns:
        The folder of experiments that the study's runs are found in.
    """
    folder = root / EXPERIMENTS / study.name
    of_reference = {**config, "data": {**(config.get("data") or {}), "split": "reference"}}
    for name, content in ((INLINE, config), ("reference", of_reference)):
        text = f"# Written from {study.path}: edit that one.\n"
        text += yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        file = folder / f"{name}.yaml"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
    return folder


def merged_jobs(plans: Iterable[Plan]) -> dict[Key, Job]:
    """The jobs of several studies, each once.

    Raises:
        UserError: Two studies evaluate one run on two suites of one name.
    """
    jobs: dict[Key, Job] = {}
    for plan in plans:
        for job in plan.jobs.values():
            add_job(jobs, job)
    return jobs
