"""Makes the jobs of runs: their command lines, what they need, and the files that say that they are done."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from forgetting.arguments import base_files, config_options
from forgetting.artifacts import hash_content
from forgetting.errors import UserError
from forgetting.method.store import PROMPTLESS, ScoreStore
from forgetting.runs.naming import Naming
from forgetting.studies.agreement import is_trained
from forgetting.studies.jobs import Job, Key, add_job, needs_store
from forgetting.studies.results import RunFolders
from forgetting.studies.spec import Repetition

CORPUS = ("corpus", "template", "max_length")
"""Settings of `data` that a prepared corpus and its tokens depend on, the model's tokenizer apart."""


class JobBuilder:
    """Collects the jobs of a study, each once.

    Args:
        study: Its file, for messages.
        experiments: Folder in which rows find their experiments.
        runs: Where runs lie, and the protocol of their evaluation.
        overlays: Files laid over every run.
        machine: Files that say where and how runs are computed: an edit of one runs nothing again.
    """

    def __init__(
        self, study: Path, experiments: Path, runs: RunFolders, overlays: Sequence[Path], machine: Sequence[Path]
    ) -> None:
        self.study, self.experiments, self.runs = study, experiments, runs
        self.overlays, self.machine = tuple(overlays), tuple(machine)
        self.jobs: dict[Key, Job] = {}
        self._suite_files: dict[str, tuple[Path, ...]] = {}
        self._names: dict[tuple[str, ...], Naming] = {}

    def options(self, experiment: str, overrides: tuple[str, ...], repetition: Repetition) -> tuple[str, ...]:
        """Files and overrides of a run, as its commands take them."""
        file = self.experiments / f"{experiment}.yaml"
        if not file.is_file():
            raise UserError(f"{self.study}: there is no experiment {file}, which a row names as {experiment!r}.")
        repeat = () if repetition.overlay is None else (repetition.overlay,)
        files = (file, *self.overlays, *repeat, *self.machine)
        places = [] if self.runs.root == Path("runs") else [f"--run.root={self.runs.root}"]
        places += [] if self.runs.corpora is None else [f"--data.corpora={self.runs.corpora}"]
        return (*config_options(files), *overrides, *places)

    def prepare(self, options: tuple[str, ...]) -> Key:
        """Make the corpus and its tokens: named by what they are made from, so that those who need them share it."""
        config = self.naming(options).config
        settings = {key: config["data"].get(key) for key in CORPUS}
        settings |= {key: config["model"].get(key) for key in ("backbone", "revision")}
        name = f"corpus-{hash_content(settings)[:12]}"
        folder = Path(config["data"].get("corpora") or "corpora")
        return self._add(Job("prepare", name, 0, ("prepare", *options), (), folder, self.files(options), config=config))

    def reference(self, options: tuple[str, ...]) -> Key:
        """Train a reference."""
        naming = self.naming(options)
        folder = self.runs.root / naming.run_id / f"seed-{naming.seed}"
        return self._add(Job(
            "reference", naming.run_id, naming.seed, ("fit", *options), (self.prepare(options),), folder,
            self.files(options), lambda: _adapter(folder), naming.config,
        ))  # fmt: skip

    def score(self, options: tuple[str, ...]) -> Key:
        """Score the corpus with a reference."""
        reference = self.jobs[self.reference(options)]
        manifest = reference.folder / "scores" / "manifest.json"
        config = self.naming(options).config  # the reference's own may be of a row that asks for less
        promptless = bool(config["data"].get("promptless"))

        def scored() -> Path | None:
            has_columns = manifest.is_file() and (
                not promptless or PROMPTLESS in ScoreStore.columns_in(manifest.parent)
            )
            return manifest if has_columns else None

        return self._add(Job(
            "score", reference.run_id, reference.seed, ("score", *options), (reference.key,), reference.folder,
            (*reference.files, reference.folder / "adapter" / "adapter_model.safetensors"),
            scored, config,
        ))  # fmt: skip

    def fit(self, options: tuple[str, ...], repetition: Repetition) -> Key:
        """Train a run, with the scores of its reference where it reads any."""
        naming = self.naming(options)
        if naming.config["data"]["split"] == "reference":
            return self.reference(options)
        files = self.files(options)
        if needs_store(naming.config) or naming.config["model"].get("start") == "reference":
            need = self.score(tuple(naming.arguments_for_reference()))
            files += self.jobs[need].files[:-1]  # an edited reference changes the run, too
        else:
            need = self.prepare(options)
        seed = naming.seed if repetition.seed is None else repetition.seed
        given = () if repetition.seed in (None, naming.seed) else (f"--seed_everything={seed}",)
        folder = self.runs.root / naming.run_id / f"seed-{seed}"
        return self._add(Job(
            "fit", naming.run_id, seed, ("fit", *options, *given), (need,), folder, files, lambda: _adapter(folder),
            naming.config,
        ))  # fmt: skip

    def evaluate(self, fit: Job, repetition: Repetition) -> Key:
        """Evaluate a run."""
        return self._evaluation(
            Job("evaluate", fit.run_id, fit.seed, ("evaluate", str(fit.folder)), (fit.key,), fit.folder, fit.files,
                config=fit.config), fit.config, repetition,
        )  # fmt: skip

    def evaluate_base(self, model: str, folder: Path, config: dict[str, Any], repetition: Repetition) -> Key:
        """Evaluate a base model, where a study's runs have a configuration."""
        output = () if self.runs.root == Path("runs") else ("--output", str(folder))
        run_id = folder.relative_to(self.runs.root / "base").as_posix()
        job = Job("evaluate_base", run_id, 0, ("evaluate", model, *output), (), folder)
        return self._evaluation(job, config, repetition)

    def _evaluation(self, job: Job, config: dict[str, Any], repetition: Repetition) -> Key:
        """Complete a job by the suite, the protocol and the device."""
        suite = repetition.suite
        assert suite is not None, "a study with columns of a suite has one"
        protocol = () if self.runs.protocol == "corrected" else ("--protocol", self.runs.protocol)
        # A run that was trained on the CPU is evaluated there.
        is_on_cpu = (config.get("trainer") or {}).get("accelerator") == "cpu"
        device = ("--device", "cpu") if is_on_cpu else ()
        if suite not in self._suite_files:
            self._suite_files[suite] = self.runs.suite_files(suite)
        return self._add(replace(
            job, arguments=(*job.arguments, "--suite", suite, *protocol, *device),
            files=(*job.files, *self._suite_files[suite]),
            artifact=lambda: self.runs.whole_result(job.folder, suite),
            label=f"{self.runs.protocol}/{Path(suite).stem}",
        ))  # fmt: skip

    def naming(self, options: tuple[str, ...]) -> Naming:
        """Names of a run; the seeds of a row share them."""
        if options not in self._names:
            self._names[options] = Naming(["fit", *options])
        return self._names[options]

    def files(self, options: tuple[str, ...]) -> tuple[Path, ...]:
        """The files that say what a run computes."""
        files = [Path(path) for option, path in pairwise(options) if option == "--config"]
        return (*base_files(options), *(file for file in files if file not in self.machine))

    def _add(self, job: Job) -> Key:
        add_job(self.jobs, job)
        return job.key


def _adapter(folder: Path) -> Path | None:
    return folder / "adapter" / "adapter_model.safetensors" if is_trained(folder) else None
