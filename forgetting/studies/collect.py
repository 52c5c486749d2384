"""From a plan and the run folders to a table: ours, the paper's, and what is missing."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forgetting.arguments import flat, read_yaml
from forgetting.errors import UserError
from forgetting.studies.agreement import (
    adapter_problem,
    is_trained,
    made_from,
    notes_on_results,
    rows_differ,
    runs_apart,
)
from forgetting.studies.pairs import Pair, over_documents, paired_difference
from forgetting.studies.plan import Plan, PlannedRun
from forgetting.studies.results import minutes
from forgetting.studies.spec import (
    AVERAGE,
    BaseModel,
    Column,
    CorpusSource,
    Group,
    Overhead,
    Row,
    Runs,
    Stage,
    Total,
    Value,
)
from forgetting.studies.table import Line, Section, Table, counted, summary

if TYPE_CHECKING:
    from forgetting.inspection.detection import Detection


def collect(plan: Plan, everything: str = "", intervals: bool = True) -> Table:
    """Find the numbers of a study.

    Args:
        plan: Its runs.
        everything: The command that makes all that is missing.
        intervals: Compute paired intervals too (they read the score of every evaluation example).

    Raises:
        UserError: Results that are there do not fit the study.
    """
    gathering = _Gathering(plan)
    study = plan.study
    sections = [gathering.section(group) for group in study.groups]
    if intervals:
        for group, section in zip(study.groups, sections, strict=True):
            lines = {line.row.name: line for line in section.lines}
            pairs = (gathering.pair(group.name, lines[first], lines[second]) for first, second in group.compare)
            section.pairs = [pair for pair in pairs if pair is not None]
    return Table(study, sections, gathering.facts(), gathering.problems, everything)


class _Gathering:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.study, self.runs = plan, plan.study, plan.runs
        self.problems: list[str] = []
        self.results: dict[str, list[dict[str, Any]]] = {}  # by repetition, where repetitions have data of their own
        self.unchecked: list[Path] = []
        self.apart: list[str] = []
        self.devices: set[str] = set()
        self.detections: dict[Path, Detection | None] = {}
        self.lines: dict[str, Line] = {}
        self.origins: dict[str, dict[str, Any]] = {}
        files = [repeat.overlay for repeat in self.study.repeats if repeat.overlay]
        self.changed = {key for file in files for key in flat(read_yaml(file))} if files else None

    def section(self, group: Group) -> Section:
        self.origins = {}
        lines = [self.line(group, row) for row in group.rows]
        if note := rows_differ(group.name, self.origins):
            self.problems.append(note)
        return Section(group.name, lines)

    def line(self, group: Group, row: Row) -> Line:
        match row.origin:
            case Runs() | BaseModel():
                line = self._runs(group, row)
            case Stage() as stage:
                line = self._stage(row, stage)
            case Total(rows):
                parts = zip(*(self.lines[name].ours for name in rows), strict=True)
                line = Line(row, [_sum(part) for part in parts])
            case Overhead(first, over):
                pairs = zip(self.lines[first].ours, self.lines[over].ours, strict=True)
                line = Line(row, [Value(100 * (a.mean / b.mean - 1)) if a and b else None for a, b in pairs])
            case CorpusSource(source):
                line = self._source(row, source)
        self.lines[row.name] = line
        return line

    # --- runs and base models ----------------------------------------------------------------------------------------

    def _runs(self, group: Group, row: Row) -> Line:
        is_run = isinstance(row.origin, Runs)
        counted: dict[str, Path] = {}
        results: dict[str, dict[str, Any]] = {}
        missing: list[PlannedRun] = []
        line = Line(row, [None] * len(self.study.columns))
        further = self.plan.further_seeds(group.name, row.name) if is_run else []
        planned = self.plan.of(group.name, row.name)
        for run in sorted((*planned, *further), key=lambda run: run.repetition.seed or 0):
            name = run.repetition.name
            if self.study.is_evaluated:
                assert run.repetition.suite is not None, "a study with columns of a suite has one"
                result = self.runs.result(run.folder, run.repetition.suite)
                if result is not None and (problem := adapter_problem(result, run.folder)):
                    self.problems.append(f"{problem}. It does not count; evaluate again.")
                    result, line.stale = None, True
                if result is not None:
                    results[name] = result
            if name in results or (not self.study.is_evaluated and is_trained(run.folder)):
                counted[name] = run.folder
            elif run.jobs or is_trained(run.folder):
                missing.append(run)
        line.commands, line.num_further = (self._commands(missing[0]) if missing else []), len(missing[1:])
        if not self._belong_together(row, list(counted.values())):
            return line
        if is_run:
            self.unchecked += [folder for name, folder in counted.items() if name in results and not is_trained(folder)]
        first = next(iter(counted), None)
        if first and (self.changed is None or first == self.plan.repetitions[0].name):
            origin = made_from(counted[first]) if is_run else _base_of(results[first])
            self.origins |= {row.name: origin} if origin else {}
        return self._filled(line, counted, results)

    def _filled(self, line: Line, folders: dict[str, Path], results: dict[str, dict[str, Any]]) -> Line:
        """A line with its values: of the suite from results, of the other columns from the runs' folders."""
        for name, result in results.items():
            self.results.setdefault(name if self.study.repeats else "", []).append(result)
        for column in self.study.columns:
            if column.kind == "suite":
                of_run = {name: self._score(result, column.name) for name, result in results.items()}
            else:
                of_run = {name: self._measured(folder, column) for name, folder in folders.items()}
            line.values.append({name: value for name, value in of_run.items() if value is not None})
        line.ours = [summary(list(values.values())) for values in line.values]
        line.num_runs, line.folders = len(folders), folders
        return line

    def _measured(self, folder: Path, column: Column) -> float | None:
        """The number of a run in a column other than the suite's; None where the run is not finished or has none."""
        if not is_trained(folder):
            return None
        if column.kind == "metric":
            return self.runs.metric(folder, column.key)
        if column.kind == "cost":
            return minutes(folder, column.key, self.devices)
        if folder not in self.detections:
            from forgetting.studies.noise import detect  # it imports torch, which a plain table does not need

            self.detections[folder] = detect(folder, self.runs.root)
        detection = self.detections[folder]
        return None if detection is None else detection.measure(column.key)

    def _score(self, result: dict[str, Any], column: str) -> float | None:
        if column == AVERAGE:
            return result["average"]
        value = result["columns"].get(column, {}).get("value")
        if value is None:
            self.problems.append(f"{result['path']}: {column} {_reason(result, column)}.")
        return value

    def _commands(self, run: PlannedRun) -> list[str]:
        if not run.jobs:  # trained with a seed that the study does not name
            return [self.runs.command(run.folder, str(run.repetition.suite))]
        jobs = [self.plan.jobs[key] for key in run.jobs]
        return [job.command for job in jobs if not (job.stage in ("fit", "reference") and is_trained(job.folder))]

    def _belong_together(self, row: Row, folders: list[Path]) -> bool:
        """Whether runs may be averaged; else why not is a problem of the table."""
        reason = runs_apart(folders, self.changed)
        if reason:
            runs = "seeds" if self.changed is None else "repeats"
            self.problems.append(
                f"{row.name} has no mean, for its {runs} do not belong together: {reason}. Move the folders that are "
                f"not of this row out of {folders[0].parent}, or run them again."
            )
        return reason is None

    # --- times and corpora -------------------------------------------------------------------------------------------

    def _stage(self, row: Row, origin: Stage) -> Line:
        line = Line(row, [])
        for experiment in origin.experiments:
            job, folders = self.plan.timed(origin.stage, experiment)
            if origin.stage == "score":  # until then `cost.json` holds the time of a part
                finished = [folder for folder in folders if (folder / "scores" / "manifest.json").is_file()]
            else:
                finished = [folder for folder in folders if is_trained(folder)]
            times = {folder: minutes(folder, origin.stage, self.devices) for folder in finished}
            timed = {folder: time for folder, time in times.items() if time is not None}
            counted = list(timed.values()) if self._belong_together(row, list(timed)) else []
            line.ours.append(summary(counted))
            line.num_runs = max(line.num_runs, len(counted))
            if not timed:
                line.commands.append(job.command)
        return line

    def _source(self, row: Row, source: str) -> Line:
        counts = self.runs.corpus_counts()
        if not counts:
            assert self.plan.corpus is not None, "a study that counts a corpus names it"
            prepare = self.plan.jobs[self.plan.corpus].command
            table = f"python -m forgetting table {self.study.path} --corpus FOLDER"
            return Line(row, [None] * len(self.study.columns), commands=[prepare, table])
        ours: list[Value | None] = []
        for split in ("train", "reference"):
            count = counts[split].get(source, 0)
            ours += [Value(float(count)), Value(100 * count / sum(counts[split].values()))]
        return Line(row, ours)

    # --- differences and notes ---------------------------------------------------------------------------------------

    def pair(self, group: str, first: Line, second: Line) -> Pair | None:
        """Paired differences of two rows, once both have results that count."""
        if not (first.num_runs and second.num_runs):
            return None
        names = f"{first.row.name} − {second.row.name}"
        if first.stale or second.stale:
            self.problems.append(f"No interval for {names} before all are evaluated again.")
            return None
        differences = [paired_difference(a, b) for a, b in zip(first.values, second.values, strict=True)]
        if self.study.is_evaluated and not self.study.repeats:
            try:
                suite = next(iter(self.results[""]))["suite"]
                by_column = over_documents(first.folders, second.folders, suite, self.runs.protocol)
            except UserError as error:
                self.problems.append(f"No interval for {names}: {error}")
                return None
            columns = zip(self.study.columns, differences, strict=True)
            differences = [by_column.get(c.name) if c.kind == "suite" else other for c, other in columns]
        shared = first.folders.keys() & second.folders.keys()
        is_of_runs = isinstance(first.row.origin, Runs) and isinstance(second.row.origin, Runs)  # a base has no seed
        if is_of_runs and shared and first.folders.keys() != second.folders.keys():
            count = f"{counted(len(shared), self.study.repetition)} of {first.num_runs} and {second.num_runs}"
            self.apart.append(f"{names} ({group}): {count}")
        return Pair(first.row.name, second.row.name, differences)

    def facts(self) -> list[str]:
        """Notes on how the numbers were made; those on what is wrong with them join the problems."""
        facts, problems = notes_on_results(list(self.results.values()), self.runs.protocol)
        self.problems += problems
        if self.unchecked:
            self.problems.append(
                f"Adapters are gone, so nothing says whether the results are of the runs as they are: "
                f"{', '.join(map(str, self.unchecked))}."
            )
        if self.apart:
            facts.append(
                f"Differences over what both rows have, where the means are over more: {'; '.join(self.apart)}."
            )
        if self.study.repeats:
            facts.append(f"Repeated over {', '.join(repetition.name for repetition in self.plan.repetitions)}.")
        if self.plan.overlays:
            facts.append(f"Runs with {', '.join(map(str, self.plan.overlays))} laid over them.")
        if self.devices:
            facts.append(f"{'Ours' if self.study.has_paper else 'Minutes'} on {', '.join(sorted(self.devices))}.")
        return facts


def _base_of(result: dict[str, Any]) -> dict[str, Any] | None:
    base = result["target"].get("base")
    return {"inputs.base": base.get("hash")} if isinstance(base, dict) else None


def _sum(values: tuple[Value | None, ...]) -> Value | None:
    means = [value.mean for value in values if value is not None]
    return Value(math.fsum(means)) if len(means) == len(values) else None


def _reason(result: dict[str, Any], column: str) -> str:
    if column not in result["columns"]:
        return "was not evaluated"
    failed = [task for task in result["columns"][column]["tasks"] if result["tasks"][task]["status"] != "ok"]
    return f"failed ({result['tasks'][failed[0]]['error']})" if failed else "has no value"
