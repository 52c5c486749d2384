"""The printed rows of a table, the same for every format: ours, the paper's, the difference, and which is best."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgetting.studies.collect import Line, Section, Table
from forgetting.studies.spec import Backbone, CorpusSource, Overhead, Value

if TYPE_CHECKING:
    from forgetting.evaluation.compare import Difference

MISSING = "—"


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class TextRow:
    """One printed row: the method's name (empty below the first), which reading it is, and its cells."""

    name: str
    reading: str
    cells: list[Cell]


def number(value: float, decimals: int, sign: bool = False) -> str:
    """A number with a real minus sign."""
    return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


def value_text(value: Value | None, decimals: int) -> str:
    """Mean ± sd, or a dash."""
    if value is None:
        return MISSING
    return number(value.mean, decimals) + ("" if value.sd is None else f" ± {number(value.sd, decimals)}")


def text_rows(table: Table, section: Section) -> list[TextRow]:
    """The printed rows of a group: for each method ours and, where the paper has any, its own and the difference."""
    best_ours = _best(table, [line.ours for line in section.lines])
    best_paper = _best(table, [line.row.paper for line in section.lines])
    rows = []
    for place, line in enumerate(section.lines):
        decimals = _decimals(table, line)
        ours = [Cell(value_text(v, decimals[c]), place in best_ours[c]) for c, v in enumerate(line.ours)]
        rows.append(TextRow(line.row.name, _ours_label(line), ours))
        if any(line.row.paper):
            paper = [Cell(value_text(v, decimals[c]), place in best_paper[c]) for c, v in enumerate(line.row.paper)]
            rows.append(TextRow("", "paper", paper))
            both = enumerate(zip(line.ours, line.row.paper, strict=True))
            rows.append(
                TextRow(
                    "",
                    "difference",
                    [
                        Cell(number(a.mean - b.mean, decimals[c], sign=True) if a and b else MISSING)
                        for c, (a, b) in both
                    ],
                )
            )
    return rows


def _ours_label(line: Line) -> str:
    if not line.seeds or isinstance(line.row.origin, Backbone):  # a model itself has no seed
        return "ours"
    return f"ours ({line.seeds} seed{'s' * (line.seeds > 1)})"


def _decimals(table: Table, line: Line) -> list[int]:
    """Decimals of each column: the table's, but those of a share in percent and of a count are fixed."""
    if isinstance(line.row.origin, CorpusSource):
        return [0, 2] * (len(line.ours) // 2)
    return [2 if isinstance(line.row.origin, Overhead) else table.spec.decimals] * len(line.ours)


def _best(table: Table, rows: list[list[Value | None]] | list[tuple[Value | None, ...]]) -> list[set[int]]:
    """For each column the rows that hold its best value as printed; none where there is nothing to compare."""
    if table.spec.suite is None:
        return [set() for _ in table.spec.columns]
    best = []
    for column in range(len(table.spec.columns)):
        printed = {
            place: round(value.mean, table.spec.decimals)
            for place, row in enumerate(rows)
            if (value := row[column]) is not None
        }
        top = max(printed.values(), default=None)
        best.append({place for place, value in printed.items() if value == top} if len(printed) > 1 else set())
    return best


def pair_rows(table: Table) -> list[list[str]]:
    """Names, group and the interval of each column of the paired differences."""
    rows = []
    for section in table.sections:
        for pair in section.pairs:
            cells = [MISSING if one is None else _interval(one) for one in pair.differences]
            rows.append([f"{pair.first} − {pair.second}", section.name, *cells])
    return rows


def _interval(one: "Difference") -> str:
    return f"{number(one.difference, 2, True)} [{number(one.low, 2, True)}, {number(one.high, 2, True)}]"


def everything(table: Table) -> str:
    """The command that makes the whole table."""
    return f"snakemake -s experiments/Snakefile --profile experiments/profiles/local {table.spec.name}"
