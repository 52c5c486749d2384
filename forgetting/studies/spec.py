"""A study: rows × repetitions × columns, where each number comes from, and the numbers that the paper prints."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from forgetting.inspection.detection import MEASURES

AVERAGE = "AVG"

INLINE = "run"
"""Name of the experiment that a study with `config` holds itself."""

NOISE_MEASURES = (*MEASURES, "noise_fraction", "positive_score_fraction")
"""Measures of the detection of noise, beside those of one kind, such as `recall/<kind>`."""


@dataclass(frozen=True)
class Value:
    """A number with its standard deviation, if there is one."""

    mean: float
    sd: float | None = None


@dataclass(frozen=True)
class Runs:
    """Runs of an experiment, one per repetition; `overrides` as the command line takes them, `--key=value`."""

    experiment: str
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True)
class BaseModel:
    """A model before any fine-tuning; None is the base model of the study's own runs."""

    target: str | None


@dataclass(frozen=True)
class Stage:
    """The wall time of a stage, of one experiment per column."""

    stage: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class Total:
    """The sum of other rows."""

    rows: tuple[str, ...]


@dataclass(frozen=True)
class Overhead:
    """The percentage by which one row exceeds another."""

    row: str
    over: str


@dataclass(frozen=True)
class CorpusSource:
    """The number of examples of a corpus that one source gave."""

    name: str


Origin = Runs | BaseModel | Stage | Total | Overhead | CorpusSource


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: As it is printed.
        kind: `suite` (a column of the suite, or AVG; in a table of times or of a corpus just a name), `metric` (the
            last value in `metrics.csv`), `cost` (minutes of a stage) or `noise` (detection of known noise).
        key: Name of the metric, the stage or the measure of detection.
        decimals: Of what is printed; None takes the study's.
        less: Of a column of the suite: its least value is the best (`best: least`).
    """

    name: str
    kind: Literal["suite", "metric", "cost", "noise"] = "suite"
    key: str = ""
    decimals: int | None = None
    less: bool = False

    @property
    def lower_is_better(self) -> bool:
        """Whether the least value is the best: of an nll, a loss and a time, and of what is declared so."""
        is_loss = self.kind == "metric" and ("nll" in self.key or "loss" in self.key)
        return self.less or self.kind == "cost" or is_loss


@dataclass(frozen=True)
class Row:
    """A row: its name, where its numbers come from, the paper's numbers, and where it lies in a figure."""

    name: str
    origin: Origin
    paper: tuple[Value | None, ...]
    at: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Rows that are compared with one another; `compare` names pairs (this row, minus that row)."""

    name: str
    rows: tuple[Row, ...]
    compare: tuple[tuple[str, str], ...] = ()

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Stated:
    """A number that the paper's text states about its own table; `erratum` says what is wrong where the two differ."""

    where: str
    value: float
    group: str
    row: str
    over: str | None = None
    column: str = AVERAGE
    erratum: str | None = None


@dataclass(frozen=True)
class Figure:
    """A drawing of one column of a table.

    `lines` (one per group) and a `heatmap` lie over what the rows' `at` names; `differences` are those of `compare`.
    """

    kind: Literal["lines", "heatmap", "differences"]
    column: str
    x: str | None = None
    y: str | None = None


@dataclass(frozen=True)
class Repetition:
    """One repetition of a study's rows: a seed, or an overlay such as a generated dataset with its own seeds.

    Attributes:
        name: `seed-0`, or the overlay's name.
        seed: Of the runs; None leaves it to the configuration.
        overlay: File laid over every row.
        suite: Evaluates the runs; None is the study's.
    """

    name: str
    seed: int | None = None
    overlay: Path | None = None
    suite: str | None = None


@dataclass(frozen=True)
class Study:
    """Rows, repeated and measured.

    Attributes:
        path: Its file.
        title: As the paper's, for a table of the paper.
        columns: In their order.
        groups: Its rows.
        caption: The table in a sentence.
        suite: Evaluates its runs: a name in `configs/evaluation/`, or the path of a YAML file.
        experiments: Folder in which rows find their experiments.
        config: An experiment of its own, which every row is a run of.
        overlays: Files laid over every row.
        repeats: Repetitions that are overlays; without one they are seeds.
        seeds: The runs' seeds.
        corpus: The experiment whose corpus it counts.
        decimals: Of what is printed.
        figure: A drawing of it.
        stated: Numbers that the paper's text states about it.
        notes: Footnotes.
    """

    path: Path
    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    caption: str = ""
    suite: str | None = None
    experiments: Path = Path("experiments")
    config: dict[str, Any] | None = None
    overlays: tuple[Path, ...] = ()
    repeats: tuple[Repetition, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    corpus: str | None = None
    decimals: int = 2
    figure: Figure | None = None
    stated: tuple[Stated, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its file."""
        return self.path.stem

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns as they are printed."""
        return tuple(column.name for column in self.columns)

    @property
    def repetition(self) -> str:
        """The word for one repetition."""
        return "repeat" if self.repeats else "seed"

    @property
    def is_evaluated(self) -> bool:
        """Whether it shows results of a suite."""
        is_given = self.suite is not None or any(repeat.suite for repeat in self.repeats)
        return is_given and any(column.kind == "suite" for column in self.columns)

    @property
    def has_paper(self) -> bool:
        """Whether it shows numbers of the paper."""
        return any(value for _, row in self.rows() for value in row.paper)

    def rows(self) -> Iterator[tuple[Group, Row]]:
        """Every row with its group."""
        for group in self.groups:
            for row in group.rows:
                yield group, row

    def footnotes(self) -> list[str]:
        """Notes, and the paper's errata about this table."""
        return [*self.notes, *(stated.erratum for stated in self.stated if stated.erratum)]
