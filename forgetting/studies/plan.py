"""From a study to its jobs: which runs its rows are, in which repetitions, and what has to be run for them.

Nothing here runs anything. The command `table` runs the jobs one after the other, `experiments/Snakefile` on a cluster.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forgetting.arguments import base_files
from forgetting.artifacts import complete_or_absent, hash_content
from forgetting.errors import UserError
from forgetting.paths import EXPERIMENTS
from forgetting.run_folder import seed_folders
from forgetting.runs.naming import Naming
from forgetting.studies.agreement import is_trained
from forgetting.studies.jobs import Job, Key, needs_store
from forgetting.studies.results import RunFolders, suite_path
from forgetting.studies.spec import INLINE, BaseModel, Row, Runs, Stage, Study

CORPUS = ("corpus", "template", "max_length")
"""Settings of `data` that a prepared corpus and its tokens depend on, the model's tokenizer apart."""


@dataclass(frozen=True)
class Repetition:
    """One repetition of a study's rows: a seed, or an overlay.

    Attributes:
        name: `seed-0`, or the overlay's name.
        seed: Of the runs; None leaves it to the configuration.
        overlay: File laid over the rows.
        suite: Evaluates the runs.
    """

    name: str
    seed: int | None = None
    overlay: Path | None = None
    suite: str | None = None


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
        self.jobs: dict[Key, Job] = {}
        self.targets: dict[Key, None] = {}
        self._suite_files: dict[str, tuple[Path, ...]] = {}
        self._names: dict[tuple[str, ...], Naming] = {}
        self._timed: dict[tuple[str, str], Key] = {}
        self._planned: dict[tuple[str, str], list[PlannedRun]] = {}
        for repetition in repetitions:
            for group, row in study.rows():
                earlier = self._planned.setdefault((group.name, row.name), [])
                earlier += self._plan(row, repetition, earlier)
        self.corpus: Key | None = None
        if study.corpus is not None:
            self.corpus = self._prepare(self._options(study.corpus, (), repetitions[0]))
            self.targets[self.corpus] = None

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
                return [self._run(self._options(experiment, overrides, repetition), repetition)]
            case BaseModel(target):
                model = target or str(self._shared_config(repetition)["model"]["backbone"])
                folder = self.runs.base(model)
                if folder in {run.folder for run in earlier}:  # the same model again: one result, not several
                    return []
                return [PlannedRun(repetition, folder, (self._evaluate_base(model, folder, repetition),))]
            case Stage(stage, experiments) if repetition is self.repetitions[0]:
                for experiment in experiments:
                    options = self._options(experiment, (), repetition)
                    key = self._score(options) if stage == "score" else self._fit(options, repetition)
                    self.targets[key] = None
                    self._timed[stage, experiment] = key
        return []

    def _shared_config(self, repetition: Repetition) -> dict[str, Any]:
        """Configuration of the study's first run; empty where it has none."""
        for _, row in self.study.rows():
            if isinstance(row.origin, Runs):
                return self._naming(self._options(row.origin.experiment, row.origin.overrides, repetition)).config
        return {}

    def _run(self, options: tuple[str, ...], repetition: Repetition) -> PlannedRun:
        fit = self.jobs[self._fit(options, repetition)]
        if not self.study.is_evaluated:
            self.targets[fit.key] = None
            return PlannedRun(repetition, fit.folder, (fit.key,))
        start, options = ("evaluate", str(fit.folder)), _device(fit.config)
        evaluation = self._evaluation("evaluate", fit.run_id, fit.seed, fit.folder, start, options, repetition, fit)
        self.targets[evaluation] = None
        return PlannedRun(repetition, fit.folder, (fit.key, evaluation))

    def _options(self, experiment: str, overrides: tuple[str, ...], repetition: Repetition) -> tuple[str, ...]:
        """Files and overrides of a run, as its commands take them."""
        file = self.experiments / f"{experiment}.yaml"
        if not file.is_file():
            raise UserError(f"{self.study.path}: there is no experiment {file}, which a row names as {experiment!r}.")
        repeat = () if repetition.overlay is None else (repetition.overlay,)
        files = (file, *self.overlays, *repeat, *self.machine)
        places = [] if self.runs.root == Path("runs") else [f"--run.root={self.runs.root}"]
        places += [] if self.runs.corpora is None else [f"--data.corpora={self.runs.corpora}"]
        return (*(part for path in files for part in ("--config", str(path))), *overrides, *places)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _add(self, job: Job) -> Key:
        _add(self.jobs, job)
        return job.key

    def _prepare(self, options: tuple[str, ...]) -> Key:
        config = self._naming(options).config
        settings = {key: config["data"].get(key) for key in CORPUS}
        settings |= {key: config["model"].get(key) for key in ("backbone", "revision")}
        name = f"corpus-{hash_content(settings)[:12]}"
        folder = Path(config["data"].get("corpora") or "corpora")
        return self._add(
            Job("prepare", name, 0, ("prepare", *options), (), folder, self._files(options), config=config)
        )

    def _reference(self, options: tuple[str, ...]) -> Key:
        naming = self._naming(options)
        folder = self.runs.root / naming.run_id / f"seed-{naming.seed}"
        return self._add(Job(
            "reference", naming.run_id, naming.seed, ("fit", *options), (self._prepare(options),), folder,
            self._files(options), lambda: _adapter(folder), naming.config,
        ))  # fmt: skip

    def _score(self, options: tuple[str, ...]) -> Key:
        reference = self.jobs[self._reference(options)]
        manifest = reference.folder / "scores" / "manifest.json"
        return self._add(Job(
            "score", reference.run_id, reference.seed, ("score", *options), (reference.key,), reference.folder,
            (*reference.files, reference.folder / "adapter" / "adapter_model.safetensors"),
            lambda: manifest if manifest.is_file() else None, reference.config,
        ))  # fmt: skip

    def _fit(self, options: tuple[str, ...], repetition: Repetition) -> Key:
        naming = self._naming(options)
        if naming.config["data"]["split"] == "reference":
            return self._reference(options)
        files = self._files(options)
        if needs_store(naming.config):
            need = self._score(tuple(naming.arguments_for_reference()))
            files += self.jobs[need].files[:-1]  # an edited reference changes the run, too
        else:
            need = self._prepare(options)
        seed = naming.seed if repetition.seed is None else repetition.seed
        given = () if repetition.seed in (None, naming.seed) else (f"--seed_everything={seed}",)
        folder = self.runs.root / naming.run_id / f"seed-{seed}"
        return self._add(Job(
            "fit", naming.run_id, seed, ("fit", *options, *given), (need,), folder, files, lambda: _adapter(folder),
            naming.config,
        ))  # fmt: skip

    def _evaluate_base(self, model: str, folder: Path, repetition: Repetition) -> Key:
        output = () if self.runs.root == Path("runs") else ("--output", str(folder))
        options = (*output, *_device(self._shared_config(repetition)))
        run_id = folder.relative_to(self.runs.root / "base").as_posix()
        key = self._evaluation("evaluate_base", run_id, 0, folder, ("evaluate", model), options, repetition, None)
        self.targets[key] = None
        return key

    def _evaluation(
        self, stage: str, run_id: str, seed: int, folder: Path, start: tuple[str, ...], options: tuple[str, ...],
        repetition: Repetition, fit: Job | None,
    ) -> Key:  # fmt: skip
        suite = repetition.suite
        assert suite is not None, "a study with columns of a suite has one"
        protocol = () if self.runs.protocol == "corrected" else ("--protocol", self.runs.protocol)
        if suite not in self._suite_files:
            self._suite_files[suite] = self.runs.suite_files(suite)
        needs, files, config = ((fit.key,), fit.files, fit.config) if fit else ((), (), {})
        return self._add(Job(
            stage, run_id, seed, (*start, "--suite", suite, *protocol, *options), needs, folder,
            (*files, *self._suite_files[suite]), lambda: self.runs.whole_result(folder, suite), config,
            f"{self.runs.protocol}/{Path(suite).stem}",
        ))  # fmt: skip

    def _naming(self, options: tuple[str, ...]) -> Naming:
        """Names of a run; the seeds of a row share them."""
        if options not in self._names:
            self._names[options] = Naming(["fit", *options])
        return self._names[options]

    def _files(self, options: tuple[str, ...]) -> tuple[Path, ...]:
        """The files that say what a run computes."""
        files = [Path(path) for option, path in zip(options, options[1:], strict=False) if option == "--config"]
        return (*base_files(options), *(file for file in files if file not in self.machine))


def merged_jobs(plans: Iterable[Plan]) -> dict[Key, Job]:
    """The jobs of several studies, each once.

    Raises:
        UserError: Two studies evaluate one run on two suites of one name.
    """
    jobs: dict[Key, Job] = {}
    for plan in plans:
        for job in plan.jobs.values():
            _add(jobs, job)
    return jobs


def _add(jobs: dict[Key, Job], job: Job) -> None:
    """A job that several rows need is one."""
    existing = jobs.setdefault(job.key, job)
    if _suite(existing) != _suite(job):
        raise UserError(
            f"`{existing.command}` and `{job.command}` evaluate one run on two suites of one name. Rename one of them."
        )


def _suite(job: Job) -> str | None:
    return job.arguments[job.arguments.index("--suite") + 1] if "--suite" in job.arguments else None


def _device(config: dict[str, Any]) -> tuple[str, ...]:
    """A run that was trained on the CPU is evaluated there."""
    return ("--device", "cpu") if (config.get("trainer") or {}).get("accelerator") == "cpu" else ()


def _adapter(folder: Path) -> Path | None:
    return folder / "adapter" / "adapter_model.safetensors" if is_trained(folder) else None


def write_inline(study: Study, root: Path) -> Path:
    """Write a study's own `config` as the experiments `<study>/run` and `<study>/reference`; what is the same is left.

    Args:
        study: With a `config`.
        root: Folder of all runs.

    Returns:
        The folder of experiments that the study's runs are found in.
    """
    assert study.config is not None, "the study has a config"
    folder = root / EXPERIMENTS / study.name
    of_reference = {**study.config, "data": {**(study.config.get("data") or {}), "split": "reference"}}
    for name, config in ((INLINE, study.config), ("reference", of_reference)):
        content = f"# Written from {study.path}: edit that one.\n"
        content += yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        file = folder / f"{name}.yaml"
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            with complete_or_absent(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
    return folder
