"""From a table's specification and the run folders to numbers: ours, the paper's, and what is missing."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forgetting.artifacts import read_json
from forgetting.reporting.paired import Interval, paired_interval
from forgetting.reporting.runs import RunFolders
from forgetting.reporting.spec import (
    Backbone,
    CorpusSource,
    Overhead,
    Row,
    Runs,
    Stage,
    TableSpec,
    Total,
    Value,
)

AVERAGE = "AVG"


@dataclass
class Line:
    """A row with its numbers, one a column.

    Attributes:
        row: As specified.
        ours: Mean and sample standard deviation over the seeds found; None is missing.
        seeds: How many seeds there are.
        commands: What would make what is missing.
    """

    row: Row
    ours: list[Value | None]
    seeds: int = 0
    commands: list[str] = field(default_factory=list)


@dataclass
class Pair:
    """The paired difference of two rows, one interval a column; None where it cannot be computed."""

    first: str
    second: str
    intervals: list[Interval | None]


@dataclass
class Section:
    """A group with its numbers."""

    name: str
    lines: list[Line]
    pairs: list[Pair] = field(default_factory=list)


@dataclass
class Table:
    """A table that is ready to be written."""

    spec: TableSpec
    sections: list[Section]
    facts: list[str]
    problems: list[str]

    def missing(self) -> list[tuple[str, str, list[str]]]:
        """Group, row and commands of what is missing."""
        return [
            (section.name, line.row.name, line.commands)
            for section in self.sections
            for line in section.lines
            if line.commands
        ]


def collect(spec: TableSpec, runs: RunFolders, intervals: bool = True) -> Table:
    """Find the numbers of a table.

    Args:
        spec: The table.
        runs: Where the runs are, which variant and which protocol.
        intervals: Compute paired intervals too (they read every document's score).

    Raises:
        UserError: Results that are there do not fit the table.
    """
    gathering = _Gathering(spec, runs)
    sections = [Section(group.name, [gathering.line(row) for row in group.rows]) for group in spec.groups]
    if intervals and spec.suite is not None:
        for group, section in zip(spec.groups, sections, strict=True):
            section.pairs = [gathering.pair(group.row(one), group.row(other)) for one, other in group.compare]
            section.pairs = [pair for pair in section.pairs if any(pair.intervals)]
    return Table(spec, sections, gathering.facts(), gathering.problems)


def summary(values: list[float]) -> Value | None:
    """Mean and sample standard deviation (over n − 1); none of one value."""
    if not values:
        return None
    return Value(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


class _Gathering:
    def __init__(self, spec: TableSpec, runs: RunFolders) -> None:
        self.spec, self.runs = spec, runs
        self.problems: list[str] = []
        self.documents: dict[str, set[int]] = {}
        self.harness: set[str] = set()
        self.devices: set[str] = set()
        self.found: dict[str, Line] = {}
        self.corpus: dict[str, dict[str, int]] | None = None

    def line(self, row: Row) -> Line:
        gather: dict[type, Callable[[Row, Any], Line]] = {
            Runs: self._runs, Backbone: self._backbone, Stage: self._stage, Total: self._total,
            Overhead: self._overhead, CorpusSource: self._source,
        }  # fmt: skip
        self.found[row.name] = line = gather[type(row.origin)](row, row.origin)
        return line

    def _runs(self, row: Row, origin: Runs) -> Line:
        folders = self.runs.seeds(origin.experiment)
        results = self.runs.results(folders, self.spec.suite)
        line = Line(row, self._scores(results), len(results))
        trained = [folder for folder in folders if (folder / "adapter" / "adapter_model.safetensors").is_file()]
        evaluated = {Path(one["path"]).parent for one in results}
        line.commands = [self._evaluate(folder) for folder in trained if folder not in evaluated]
        if not folders:
            overlay = f" --config configs/{self.runs.variant}.yaml" if self.runs.variant else ""
            folder = self.runs.experiment(origin.experiment) / "seed-0"
            line.commands = [
                f"python -m forgetting fit --config experiments/{origin.experiment}.yaml{overlay}",
                self._evaluate(folder),
            ]
        elif not trained and not results:
            line.commands = [f"python -m forgetting fit --config {folders[0]}/fit.yaml", self._evaluate(folders[0])]
        return line

    def _backbone(self, row: Row, origin: Backbone) -> Line:
        results = self.runs.results([self.runs.backbone(origin.target)], self.spec.suite)
        commands = [] if results else [self._evaluate(origin.target)]
        return Line(row, self._scores(results), len(results), commands)

    def _evaluate(self, target: object) -> str:
        protocol = "" if self.runs.protocol == "corrected" else f" --protocol {self.runs.protocol}"
        return f"python -m forgetting evaluate {target} --suite {self.spec.suite}{protocol}"

    def _scores(self, results: list[dict[str, Any]]) -> list[Value | None]:
        """Mean and sd of each column over results."""
        values: dict[str, list[float]] = {column: [] for column in self.spec.columns}
        for result in results:
            self.harness.add(result["versions"]["lm_eval"])
            for column in self.spec.columns:
                value = result["average"] if column == AVERAGE else result["columns"].get(column, {}).get("value")
                if value is not None:
                    values[column].append(value)
                elif column != AVERAGE:
                    self.problems.append(f"{result['path']}: {column} {_reason(result, column)}.")
            for column, entry in result["columns"].items():
                self.documents.setdefault(column, set()).add(entry["documents"])
        return [summary(values[column]) for column in self.spec.columns]

    def _stage(self, row: Row, origin: Stage) -> Line:
        ours, commands, seeds = [], [], 0
        for experiment in origin.experiments:
            minutes = []
            for folder in self.runs.seeds(experiment):
                if entries := self.runs.costs(folder, origin.stage):
                    minutes.append(math.fsum(entry["seconds"] for entry in entries) / 60)
                    self.devices |= {entry["device"] for entry in entries}
            ours.append(summary(minutes))
            seeds = max(seeds, len(minutes))
            if not minutes:
                commands.append(f"python -m forgetting {origin.stage} --config experiments/{experiment}.yaml")
        return Line(row, ours, seeds, commands)

    def _total(self, row: Row, origin: Total) -> Line:
        parts = zip(*(self.found[name].ours for name in origin.rows), strict=True)
        return Line(row, [_sum(part) for part in parts])

    def _overhead(self, row: Row, origin: Overhead) -> Line:
        pairs = zip(self.found[origin.row].ours, self.found[origin.over].ours, strict=True)
        return Line(row, [Value(100 * (a.mean / b.mean - 1)) if a and b else None for a, b in pairs])

    def _source(self, row: Row, origin: CorpusSource) -> Line:
        if self.corpus is None:
            self.corpus = _corpus_counts(self.runs, self.spec.corpus or "")
        ours: list[Value | None] = []
        for split in ("train", "reference"):
            counts = self.corpus.get(split)
            count = None if counts is None else counts.get(origin.name, 0)
            share = None if count is None or not counts else 100 * count / sum(counts.values())
            ours += [None if count is None else Value(count), None if share is None else Value(share)]
        command = f"python -m forgetting prepare --config experiments/{self.spec.corpus}.yaml"
        return Line(row, ours, commands=[] if self.corpus else [command])

    def pair(self, first: Row, second: Row) -> Pair:
        folders = [self._evaluated(row) for row in (first, second)]
        return Pair(first.name, second.name, paired_interval(*folders, self.spec.columns, self.runs))

    def _evaluated(self, row: Row) -> list[Path]:
        assert isinstance(row.origin, Runs)
        return [path for path in self.runs.seeds(row.origin.experiment) if (path / self.runs.results_name).is_file()]

    def facts(self) -> list[str]:
        facts = []
        if self.documents:
            counts = [
                f"{column} {'/'.join(map(str, sorted(self.documents[column])))}"
                for column in self.spec.columns
                if column in self.documents
            ]
            facts.append(f"Protocol {self.runs.protocol}; documents: {', '.join(counts)}.")
            facts.append(f"lm-evaluation-harness {', '.join(sorted(self.harness))}.")
            differing = [column for column in self.documents if len(self.documents[column]) > 1]
            if differing:
                self.problems.append(f"Rows were evaluated on different numbers of documents: {', '.join(differing)}.")
        if self.runs.variant:
            facts.append(f"Runs of the variant {self.runs.variant}.")
        if self.devices:
            facts.append(f"Ours on {', '.join(sorted(self.devices))}.")
        return facts


def _sum(values: tuple[Value | None, ...]) -> Value | None:
    means = [value.mean for value in values if value is not None]
    return Value(math.fsum(means)) if len(means) == len(values) else None


def _reason(result: dict[str, Any], column: str) -> str:
    if column not in result["columns"]:
        return "was not evaluated"
    failed = [task for task in result["columns"][column]["tasks"] if result["tasks"][task]["status"] != "ok"]
    return f"failed ({result['tasks'][failed[0]]['error']})" if failed else "has no value"


def _corpus_counts(runs: RunFolders, experiment: str) -> dict[str, dict[str, int]]:
    return {}
