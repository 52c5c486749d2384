"""From a table's specification and the run folders to numbers: ours, the paper's, and what is missing."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.errors import UserError
from forgetting.studies.agreement import (
    adapter_problem,
    evaluated_apart,
    is_finished,
    is_trained,
    made_from,
    rows_differ,
    seeds_apart,
)
from forgetting.studies.runs import RunFolders
from forgetting.studies.spec import (
    Backbone,
    CorpusSource,
    Group,
    Overhead,
    Row,
    Runs,
    Stage,
    TableSpec,
    Total,
    Value,
)

if TYPE_CHECKING:
    from forgetting.evaluation.compare import Difference

AVERAGE = "AVG"


@dataclass
class Line:
    """A row with its numbers, one a column.

    Attributes:
        row: As specified.
        ours: Mean and sample standard deviation over the seeds found; None is missing.
        seeds: How many seeds there are.
        commands: What would make what is missing.
        stale: Results that do not count lie in its folders.
    """

    row: Row
    ours: list[Value | None]
    seeds: int = 0
    commands: list[str] = field(default_factory=list)
    stale: bool = False


@dataclass
class Pair:
    """The paired difference of two rows with its interval, one a column; None where it cannot be computed."""

    first: str
    second: str
    differences: "list[Difference | None]"


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

    def missing(self) -> list[tuple[str, list[str]]]:
        """What is missing (rows with their group), and the commands that would make it."""
        found: dict[tuple[str, ...], list[str]] = {}
        for section in self.sections:
            for line in section.lines:
                if line.commands:
                    found.setdefault(tuple(line.commands), []).append(f"{line.row.name} ({section.name})")
        return [(", ".join(rows), list(commands)) for commands, rows in found.items()]

    def notes(self) -> list[str]:
        """What stands below the table."""
        return [*self.facts, *self.problems, *(f"On the paper: {note}" for note in self.spec.footnotes())]


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
    sections = [gathering.section(group) for group in spec.groups]
    if intervals and spec.suite is not None:
        for group, section in zip(spec.groups, sections, strict=True):
            lines = {line.row.name: line for line in section.lines}
            pairs = (gathering.pair(lines[one], lines[other]) for one, other in group.compare)
            section.pairs = [pair for pair in pairs if pair is not None]
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
        self.results: list[dict[str, Any]] = []
        self.unchecked: list[Path] = []
        self.devices: set[str] = set()
        self.found: dict[str, Line] = {}
        self.origins: dict[str, dict[str, Any]] = {}

    def section(self, group: Group) -> Section:
        self.origins = {}
        lines = [self.line(row) for row in group.rows]
        if note := rows_differ(group.name, self.origins):
            self.problems.append(note)
        return Section(group.name, lines)

    def line(self, row: Row) -> Line:
        gather: dict[type, Callable[[Row, Any], Line]] = {
            Runs: self._runs, Backbone: self._backbone, Stage: self._stage, Total: self._total,
            Overhead: self._overhead, CorpusSource: self._source,
        }  # fmt: skip
        self.found[row.name] = line = gather[type(row.origin)](row, row.origin)
        return line

    def _runs(self, row: Row, origin: Runs) -> Line:
        folders = self.runs.seeds(origin.experiment)
        found = {folder: one for folder in folders if (one := self.runs.result(folder, self.spec)) is not None}
        results: dict[Path, dict[str, Any]] = {}
        for folder, result in found.items():
            if problem := adapter_problem(result, folder):
                self.problems.append(f"{problem}. It does not count; evaluate again.")
            else:
                results[folder] = result
        trained = [folder for folder in folders if is_trained(folder)]
        commands = [self._evaluate(folder) for folder in trained if folder not in results]
        if not trained and not results:
            folder = folders[0] if folders else self.runs.experiment(origin.experiment) / "seed-0"
            commands = [self._fit(origin.experiment, folder), self._evaluate(folder)]
        stale = len(results) < len(found)
        if not self._together(row, list(results)):
            return Line(row, [None] * len(self.spec.columns), commands=commands, stale=stale)
        self.unchecked += [folder for folder in results if folder not in trained]
        if results and (origins := made_from(next(iter(results)))):
            self.origins[row.name] = origins
        return Line(row, self._scores(list(results.values())), len(results), commands, stale)

    def _together(self, row: Row, folders: list[Path]) -> bool:
        """Whether seeds may be averaged; else why not is a problem of the table."""
        reason = seeds_apart(folders)
        if reason:
            self.problems.append(
                f"{row.name} has no mean, for its seeds do not belong together: {reason}. Move the folders that are "
                f"not of this row out of {folders[0].parent}, or run them again."
            )
        return reason is None

    def _backbone(self, row: Row, origin: Backbone) -> Line:
        result = self.runs.result(self.runs.backbone(origin.target), self.spec)
        if result is None:
            return Line(row, self._scores([]), commands=[self._evaluate(origin.target)])
        if isinstance(base := result["target"].get("base"), dict):
            self.origins[row.name] = {"inputs.base": base.get("hash")}
        return Line(row, self._scores([result]), 1)

    def _fit(self, experiment: str, folder: Path) -> str:
        overlay = f" --config configs/{self.runs.variant}.yaml" if self.runs.variant else ""
        seed = "" if folder.name == "seed-0" else f" --seed_everything {folder.name.removeprefix('seed-')}"
        return f"python -m forgetting fit --config experiments/{experiment}.yaml{overlay}{seed}"

    def _evaluate(self, target: object) -> str:
        protocol = "" if self.runs.protocol == "corrected" else f" --protocol {self.runs.protocol}"
        return f"python -m forgetting evaluate {target} --suite {self.spec.suite_argument}{protocol}"

    def _scores(self, results: list[dict[str, Any]]) -> list[Value | None]:
        """Mean and sd of each column over results."""
        values: dict[str, list[float]] = {column: [] for column in self.spec.columns}
        self.results += results
        for result in results:
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
            finished = [folder for folder in self.runs.seeds(experiment) if is_finished(folder, origin.stage)]
            timed = {folder: entries for folder in finished if (entries := self.runs.costs(folder, origin.stage))}
            if self._together(row, list(timed)):
                minutes = [math.fsum(entry["seconds"] for entry in entries) / 60 for entries in timed.values()]
                self.devices |= {entry["device"] for entries in timed.values() for entry in entries}
            else:
                minutes = []
            ours.append(summary(minutes))
            seeds = max(seeds, len(minutes))
            if not timed:
                commands.append(f"python -m forgetting {origin.stage} --config experiments/{experiment}.yaml")
        return Line(row, ours, seeds, commands)

    def _total(self, row: Row, origin: Total) -> Line:
        parts = zip(*(self.found[name].ours for name in origin.rows), strict=True)
        return Line(row, [_sum(part) for part in parts])

    def _overhead(self, row: Row, origin: Overhead) -> Line:
        pairs = zip(self.found[origin.row].ours, self.found[origin.over].ours, strict=True)
        return Line(row, [Value(100 * (a.mean / b.mean - 1)) if a and b else None for a, b in pairs])

    def _source(self, row: Row, origin: CorpusSource) -> Line:
        counts = self.runs.corpus_counts()
        if not counts:
            prepare = f"python -m forgetting prepare --config experiments/{self.spec.corpus}.yaml"
            table = f"python -m forgetting table experiments/tables/{self.spec.name}.yaml --corpus FOLDER"
            return Line(row, [None] * len(self.spec.columns), commands=[prepare, table])
        ours: list[Value | None] = []
        for split in ("train", "reference"):
            count = counts[split].get(origin.name, 0)
            ours += [Value(float(count)), Value(100 * count / sum(counts[split].values()))]
        return Line(row, ours)

    def pair(self, first: Line, second: Line) -> Pair | None:
        """The paired bootstrap of two rows, once both have results that count."""
        if not (first.seeds and second.seeds):
            return None
        if first.stale or second.stale:
            self.problems.append(
                f"No interval for {first.row.name} − {second.row.name} before all are evaluated again."
            )
            return None
        from forgetting.evaluation.compare import compare

        folders = []
        for line in (first, second):
            assert isinstance(line.row.origin, Runs), "specifications compare runs"
            folders.append(self.runs.experiment(line.row.origin.experiment))
        try:
            _, differences = compare(folders[0], folders[1], self.runs.protocol, suite=self.spec.suite)
        except UserError as error:
            self.problems.append(f"No interval for {first.row.name} − {second.row.name}: {error}")
            return None
        names: dict[str, Difference | None] = {one.name.removeprefix("column "): one for one in differences}
        names[AVERAGE] = names.get("average")
        return Pair(first.row.name, second.row.name, [names.get(column) for column in self.spec.columns])

    def facts(self) -> list[str]:
        facts = []
        if self.documents:
            counts = [f"{column} {'/'.join(map(str, sorted(numbers)))}" for column, numbers in self.documents.items()]
            facts.append(f"Protocol {self.runs.protocol}; documents: {', '.join(counts)}.")
            harness = {result["versions"]["lm_eval"] for result in self.results}
            facts.append(f"lm-evaluation-harness {', '.join(sorted(harness))}.")
            differing = [column for column in self.documents if len(self.documents[column]) > 1]
            if differing:
                self.problems.append(f"Rows were evaluated on different numbers of documents: {', '.join(differing)}.")
        self.problems += evaluated_apart(self.results)
        if self.unchecked:
            self.problems.append(
                f"Adapters are gone, so nothing says whether the results are of the runs as they are: "
                f"{', '.join(map(str, self.unchecked))}."
            )
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
