"""What tables need: which experiments, which references and stores they share, what is left, how long it takes.

The workflow in `experiments/Snakefile` asks here; nothing here runs anything.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from forgetting.arguments import read_yaml
from forgetting.errors import UserError
from forgetting.paths import CONFIGS
from forgetting.studies.runs import RunFolders
from forgetting.studies.spec_file import load_spec

STAGES = ("prepare", "reference", "score", "fit", "evaluate", "evaluate_base")

MINUTES = {
    "reference": (36, 52),
    "score": (47, 73),
    "full": (205, 347),
    "ignoring": (166, 282),
    "forgetting": (187, 311),
}
"""Table 11: minutes of each stage for the 3B and the 8B model on four L40S."""

FULL_MINUTES = {
    "meta-llama/Llama-3.2-1B": 120,  # §5.1.3: about 2 hours
    "meta-llama/Llama-3.2-3B": 205,
    "meta-llama/Llama-3.1-8B": 347,
    "meta-llama/Llama-2-13b-hf": 490,  # on the line through 3B and 8B
    "Qwen/Qwen2.5-3B": 205,
    "EleutherAI/gpt-neo-2.7B": 205,
}
"""A Full Tokens run of 50,000 samples; other stages take Table 11's share of it."""


@dataclass(frozen=True)
class Experiment:
    """One run's file, and what it needs.

    Attributes:
        name: Path below `experiments/`, without suffix.
        file: The YAML.
        backbone: Its model.
        method: `reference`, `full`, `ignoring` or `forgetting`.
        reference: The experiment whose store gives its masks; its own name for a reference.
        reference_seed: That experiment's seed.
        needs_store: Whether it reads the store (Full Tokens does not).
        num_samples: Samples it trains on.
    """

    name: str
    file: Path
    backbone: str
    method: str
    reference: str
    reference_seed: int
    needs_store: bool
    num_samples: int


def load_experiment(name: str, folder: Path, overlays: Iterable[Path] = ()) -> Experiment:
    """Read an experiment as `fit` would: base configurations, its file, overlays.

    Args:
        name: Path below `folder`, without suffix.
        folder: `experiments/`.
        overlays: Files laid over it.

    Raises:
        UserError: There is no such experiment.
    """
    file = folder / f"{name}.yaml"
    delta = read_yaml(file)
    config = _base(delta.get("base"))
    for layer in (delta, *map(read_yaml, overlays)):
        config = _merged(config, layer)
    data = config["data"]
    is_reference = data["split"] == "reference"
    objective = config["model"]["objective"]["class_path"].rsplit(".", 1)[-1]
    trains_on_all = data["positive_fraction"] == "all"
    method = "full" if trains_on_all else "ignoring" if objective == "MeanNLL" else "forgetting"
    method = "reference" if is_reference else method
    return Experiment(
        name=name,
        file=file,
        backbone=config["model"]["backbone"],
        method=method,
        reference=name if is_reference else data["reference"] or f"{name.rpartition('/')[0]}/reference",
        reference_seed=data["reference_seed"],
        needs_store=not is_reference and data["positive_fraction"] != "all",
        num_samples=data["corpus"]["num_reference" if is_reference else "num_train"],
    )


@cache
def _base(name: str | None) -> dict[str, Any]:
    """The configurations under an experiment: `configs/paper.yaml`, and the one it names as its base."""
    config = read_yaml(CONFIGS / "paper.yaml")
    return _merged(config, read_yaml(CONFIGS / f"{name}.yaml")) if name else config


def _merged(below: Any, above: Any) -> Any:
    """`above` laid over `below`; a changed class drops the arguments of the one below."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


class Plan:
    """All tables and the experiments they need.

    Args:
        folder: `experiments/`.
        overlays: Files laid over every experiment.
    """

    def __init__(self, folder: Path, overlays: Iterable[Path] = ()) -> None:
        self.folder = folder
        self.tables = {path.stem: load_spec(path) for path in sorted((folder / "tables").glob("*.yaml"))}
        used = [name for spec in self.tables.values() for name in (*spec.experiments(), spec.corpus) if name]
        self.experiments: dict[str, Experiment] = {}
        for name in dict.fromkeys(used):
            experiment = self.experiments[name] = load_experiment(name, folder, overlays)
            if experiment.reference not in self.experiments:
                self.experiments[experiment.reference] = load_experiment(experiment.reference, folder, overlays)
        self.suites = self._suites()

    def _suites(self) -> dict[str, str]:
        """Which suite an experiment or backbone is evaluated on."""
        suites: dict[str, str] = {}
        for spec in self.tables.values():
            suite = spec.suite_argument
            if suite is None:
                continue
            for name in (*spec.experiments(), *spec.backbones()):
                if suites.setdefault(name, suite) != suite:
                    raise UserError(f"{name} is evaluated on two suites, {suites[name]} and {suite}; its results "
                                    "would overwrite each other.")  # fmt: skip
        return suites

    def reads(self, table: str) -> tuple[list[str], list[str]]:
        """The experiments whose evaluation a table reads, and those whose times alone it reads."""
        spec = self.tables[table]
        return (spec.experiments(), []) if spec.suite else ([], spec.experiments())

    def stages(self, table: str, seeds: list[int]) -> list[tuple[str, str, int]]:
        """Every (stage, experiment or backbone, seed) behind a table, each once, in the order of `STAGES`.

        A corpus and its tokens go by the reference that shares them.
        """
        spec = self.tables[table]
        evaluated, timed = self.reads(table)
        found: dict[tuple[str, str, int], None] = {}
        for name in (*evaluated, *timed, *([spec.corpus] if spec.corpus else [])):
            experiment = self.experiments[name]
            reference = (experiment.reference, experiment.reference_seed)
            found[("prepare", experiment.reference, 0)] = None
            if name == spec.corpus:
                continue
            if experiment.needs_store or experiment.method == "reference":
                found[("reference", *reference)] = None
                found[("score", *reference)] = None
            if experiment.method != "reference":
                for seed in seeds if name in evaluated else seeds[:1]:
                    found[("fit", name, seed)] = None
                    if name in evaluated:
                        found[("evaluate", name, seed)] = None
        found.update({("evaluate_base", target, 0): None for target in spec.backbones()})
        return sorted(found, key=lambda one: STAGES.index(one[0]))

    def minutes(self, stage: str, name: str) -> float | None:
        """Minutes of a stage on the paper's machine, by Table 11's shares; None where it says nothing."""
        experiment = self.experiments.get(name)
        if stage not in ("reference", "score", "fit") or experiment is None or experiment.backbone not in FULL_MINUTES:
            return None
        key = experiment.method if stage == "fit" else stage
        small, full = MINUTES[key][0] / MINUTES["full"][0], FULL_MINUTES[experiment.backbone]
        large = MINUTES[key][1] / MINUTES["full"][1]
        share = large if full >= FULL_MINUTES["meta-llama/Llama-3.1-8B"] else small
        samples = (
            self.experiments[experiment.reference].num_samples / 10_000 if key == "reference" else self._scale(name)
        )
        return share * full * samples

    def _scale(self, name: str) -> float:
        """Size of D_train over the paper's 50,000; a reference scores the D_train of those that use its store."""
        users = [e.num_samples for e in self.experiments.values() if e.reference == name and e.method != "reference"]
        own = self.experiments[name]
        return (own.num_samples if own.method != "reference" else max(users, default=50_000)) / 50_000


def estimate(plan: Plan, left: list[tuple[str, str, int]], done: list[tuple[str, str, int]], runs: RunFolders) -> str:
    """What is left, in words: how many jobs of each stage, and about how long.

    A stage that the paper timed takes the paper's minutes, scaled by how fast such stages were here; another one takes
    the mean of its kind here. What neither covers is not counted, and named.

    Args:
        plan: All experiments.
        left: Stages to run.
        done: Stages that are finished.
        runs: Where their costs are.
    """
    counts = Counter(stage for stage, _, _ in left)
    if not counts:
        return "Nothing is left."
    listed = ", ".join(f"{number} {stage}" for stage, number in counts.items())
    measured = {one: minutes for one in done if (minutes := _measured(one, runs)) is not None}
    ratios = [minutes / paper for one, minutes in measured.items() if (paper := plan.minutes(*one[:2]))]
    scale = statistics.median(ratios) if ratios else 1.0
    total, uncounted = 0.0, list[str]()
    for stage, name, _ in left:
        same = [minutes for one, minutes in measured.items() if one[0] == stage]
        if (paper := plan.minutes(stage, name)) is not None:
            total += paper * scale
        elif same:
            total += statistics.fmean(same)
        elif stage not in uncounted:
            uncounted.append(stage)
    if not total:
        return f"Left: {listed}."
    time = f"{total / 60:,.0f} hours" if total >= 120 else f"{total:,.0f} minutes"
    whose = (
        f"at the speed of {len(measured)} finished stages here" if measured else "on four L40S, by Table 11's shares"
    )
    return f"Left: {listed}. About {time} one after another {whose}" + (
        f"; not counted: {', '.join(uncounted)}." if uncounted else "."
    )


def _measured(one: tuple[str, str, int], runs: RunFolders) -> float | None:
    """Minutes that a finished stage took here."""
    stage, name, seed = one
    folder = runs.backbone(name) if stage == "evaluate_base" else runs.experiment(name) / f"seed-{seed}"
    kind = {"reference": "fit", "evaluate_base": "evaluate"}.get(stage, stage)
    entries = runs.costs(folder, kind)
    return math.fsum(entry["seconds"] for entry in entries) / 60 if entries else None
