"""From a study to its jobs: which runs its rows are, in which repetitions, and what has to be run for them.

Nothing here runs anything. The command `table` runs the jobs one after the other, `experiments/Snakefile` on a cluster.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.errors import UserError
from forgetting.run_folder import seed_folders
from forgetting.studies.inline import write_inline
from forgetting.studies.job_builder import JobBuilder
from forgetting.studies.jobs import Job, Key, Repetition, add_job
from forgetting.studies.results import RunFolders, suite_path
from forgetting.studies.spec import BaseModel, Row, Runs, Stage, Study


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
        self.machine = tuple(machine)
        self.seeds_are_given = seeds is not None
        self.experiments = study.experiments if study.config is None else write_inline(study, runs.root)
        repetitions = [Repetition(r.overlay.stem, None, r.overlay, r.suite or study.suite) for r in study.repeats]
        repetitions = repetitions or [
            Repetition(f"seed-{seed}", seed, None, study.suite) for seed in seeds or study.seeds
        ]
        self.repetitions = repetitions
        self._builder = JobBuilder(study.path, self.experiments, runs, self.overlays, self.machine)
        self.jobs = self._builder.jobs
        self.targets: dict[Key, None] = {}
        self._timed: dict[tuple[str, str], Key] = {}
        self._planned: dict[tuple[str, str], list[PlannedRun]] = {}
        for repetition in repetitions:
            for group, row in study.rows():
                earlier = self._planned.setdefault((group.name, row.name), [])
                earlier += self._plan(row, repetition, earlier)
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

    def pending(self, targets: Iterable[Key] | None = None) -> list[Job]:
        """Jobs that are not done, each after those that it needs.

        What only finished jobs need is not looked at: a reference may be gone once all its runs are trained.

        Args:
            targets: Keys of the last jobs; None takes the study's.
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

        for key in self.targets if targets is None else targets:
            visit(key)
        return list(ordered.values())

    # --- rows --------------------------------------------------------------------------------------------------------

    def _plan(self, row: Row, repetition: Repetition, earlier: list[PlannedRun]) -> list[PlannedRun]:
        match row.origin:
            case Runs(experiment, overrides):
                return [self._run(self._builder.options(experiment, overrides, repetition), repetition)]
            case BaseModel(target):
                model = target or str(self._shared_config(repetition)["model"]["backbone"])
                folder = self.runs.base(model)
                if folder in {run.folder for run in earlier}:  # the same model again: one result, not several
                    return []
                return [PlannedRun(repetition, folder, (self._evaluate_base(model, folder, repetition),))]
            case Stage(stage, experiments) if repetition is self.repetitions[0]:
                for experiment in experiments:
                    options = self._builder.options(experiment, (), repetition)
                    key = self._builder.score(options) if stage == "score" else self._builder.fit(options, repetition)
                    self.targets[key] = None
                    self._timed[stage, experiment] = key
        return []

    def _shared_config(self, repetition: Repetition) -> dict[str, Any]:
        """Configuration of the study's first run; empty where it has none."""
        for _, row in self.study.rows():
            if isinstance(row.origin, Runs):
                return self._builder.naming(
                    self._builder.options(row.origin.experiment, row.origin.overrides, repetition)
                ).config
        return {}

    def _run(self, options: tuple[str, ...], repetition: Repetition) -> PlannedRun:
        fit = self.jobs[self._builder.fit(options, repetition)]
        if not self.study.is_evaluated:
            self.targets[fit.key] = None
            return PlannedRun(repetition, fit.folder, (fit.key,))
        start, options = ("evaluate", str(fit.folder)), _device(fit.config)
        evaluation = self._builder.evaluation(
            "evaluate", fit.run_id, fit.seed, fit.folder, start, options, repetition, fit
        )
        self.targets[evaluation] = None
        return PlannedRun(repetition, fit.folder, (fit.key, evaluation))

    def _evaluate_base(self, model: str, folder: Path, repetition: Repetition) -> Key:
        output = () if self.runs.root == Path("runs") else ("--output", str(folder))
        options = (*output, *_device(self._shared_config(repetition)))
        run_id = folder.relative_to(self.runs.root / "base").as_posix()
        key = self._builder.evaluation(
            "evaluate_base", run_id, 0, folder, ("evaluate", model), options, repetition, None
        )
        self.targets[key] = None
        return key


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


def _device(config: dict[str, Any]) -> tuple[str, ...]:
    """A run that was trained on the CPU is evaluated there."""
    return ("--device", "cpu") if (config.get("trainer") or {}).get("accelerator") == "cpu" else ()
