"""What a table is: rows × columns, where each row's numbers come from, and the numbers the paper prints."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Value:
    """A number with its standard deviation, if there is one."""

    mean: float
    sd: float | None = None


@dataclass(frozen=True)
class Runs:
    """The benchmark results of an experiment, one a seed."""

    experiment: str


@dataclass(frozen=True)
class Backbone:
    """The benchmark results of a model itself, before any fine-tuning."""

    target: str


@dataclass(frozen=True)
class Stage:
    """The wall time of a stage, of one experiment a column."""

    stage: str
    experiments: tuple[str, ...]


@dataclass(frozen=True)
class Total:
    """The sum of other rows."""

    rows: tuple[str, ...]


@dataclass(frozen=True)
class Overhead:
    """By how many percent one row exceeds another."""

    row: str
    over: str


@dataclass(frozen=True)
class CorpusSource:
    """How many samples of a corpus one source gave."""

    name: str


Origin = Runs | Backbone | Stage | Total | Overhead | CorpusSource


@dataclass(frozen=True)
class Row:
    """A row: its name in the paper, where ours comes from, the paper's numbers, and where it lies in a figure."""

    name: str
    origin: Origin
    paper: tuple[Value | None, ...]
    at: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Rows that are compared with one another; `compare` names pairs (this row, over that row)."""

    name: str
    rows: tuple[Row, ...]
    compare: tuple[tuple[str, str], ...] = ()

    def row(self, name: str) -> Row:
        """The row of that name."""
        return next(row for row in self.rows if row.name == name)


@dataclass(frozen=True)
class Stated:
    """A number that the paper's text states about its own table; `slip` says what is wrong where the two differ."""

    where: str
    value: float
    group: str
    row: str
    over: str | None = None
    column: str = "AVG"
    slip: str | None = None


@dataclass(frozen=True)
class Figure:
    """How a table is drawn: `lines` (one a group) or a `heatmap`, of one column, over what the rows' `at` names."""

    kind: Literal["lines", "heatmap"]
    x: str
    column: str
    y: str | None = None


@dataclass(frozen=True)
class TableSpec:
    """A table or figure of the paper.

    Attributes:
        name: Of its file.
        title: As the paper's.
        caption: What it shows.
        columns: Of the suite, and AVG; or of a corpus, or of times.
        groups: Its rows.
        suite: Whose results it shows; None for a table of times or of a corpus.
        suite_file: Where that suite is, if not in `configs/evaluation/`.
        corpus: The experiment whose corpus it counts.
        decimals: Of what is printed.
        figure: How it is drawn.
        stated: What the paper's text says about it.
        notes: Footnotes.
    """

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    groups: tuple[Group, ...]
    suite: str | None = None
    suite_file: str | None = None
    corpus: str | None = None
    decimals: int = 2
    figure: Figure | None = None
    stated: tuple[Stated, ...] = ()
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[Group, Row]]:
        """Every row with its group."""
        for group in self.groups:
            for row in group.rows:
                yield group, row

    def experiments(self) -> list[str]:
        """The experiments that the table's rows name, each once, in its order."""
        found: dict[str, None] = {}
        for _, row in self.rows():
            if isinstance(row.origin, Runs):
                found[row.origin.experiment] = None
            elif isinstance(row.origin, Stage):
                found.update(dict.fromkeys(row.origin.experiments))
        return list(found)

    def backbones(self) -> list[str]:
        """The models that the table evaluates as they are, each once."""
        return list(dict.fromkeys(row.origin.target for _, row in self.rows() if isinstance(row.origin, Backbone)))

    @property
    def suite_argument(self) -> str | None:
        """What `evaluate --suite` takes."""
        return self.suite_file or self.suite

    def footnotes(self) -> list[str]:
        """Notes, and the paper's slips about this table."""
        return [*self.notes, *(stated.slip for stated in self.stated if stated.slip)]
