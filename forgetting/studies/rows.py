"""The printed rows of a table, the same for every format: ours, the paper's, the difference, and which is best."""

from dataclasses import dataclass

from forgetting.studies.pairs import Difference
from forgetting.studies.spec import BaseModel, Column, CorpusSource, Overhead, Value
from forgetting.studies.table import Line, Section, Table, counted

MISSING = "—"


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class TextRow:
    """One printed row: the method's name (empty below the first), its reading (ours or the paper's), and its cells."""

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
        rows.append(TextRow(line.row.name, _reading(table, line), ours))
        if any(line.row.paper):
            paper = [Cell(value_text(v, decimals[c]), place in best_paper[c]) for c, v in enumerate(line.row.paper)]
            rows.append(TextRow("", "paper", paper))
            both = enumerate(zip(line.ours, line.row.paper, strict=True))
            texts = [number(a.mean - b.mean, decimals[c], sign=True) if a and b else MISSING for c, (a, b) in both]
            rows.append(TextRow("", "difference", [Cell(text) for text in texts]))
    return rows


def _reading(table: Table, line: Line) -> str:
    """`ours (3 seeds)`; of a table that shows nothing of the paper, `3 seeds`. A model itself has no seed."""
    is_counted = line.num_runs and (table.study.repeats or not isinstance(line.row.origin, BaseModel))
    runs = counted(line.num_runs, table.study.repetition) if is_counted else ""
    if not table.study.has_paper:
        return runs
    return f"ours ({runs})" if runs else "ours"


def column_decimals(table: Table, column: Column) -> int:
    """Decimals of a column: its own, else the study's."""
    return table.study.decimals if column.decimals is None else column.decimals


def _decimals(table: Table, line: Line) -> list[int]:
    """Decimals of each cell: the column's, but those of a fraction in percent and of a count are fixed."""
    if isinstance(line.row.origin, CorpusSource):
        return [0, 2] * (len(line.ours) // 2)
    if isinstance(line.row.origin, Overhead):
        return [2] * len(line.ours)
    return [column_decimals(table, column) for column in table.study.columns]


def _best(table: Table, rows: list[list[Value | None]] | list[tuple[Value | None, ...]]) -> list[set[int]]:
    """For each column the rows that hold its best value as printed; none where there is nothing to choose from."""
    best = []
    for place, column in enumerate(table.study.columns):
        decimals = column_decimals(table, column)
        printed = {n: round(value.mean, decimals) for n, row in enumerate(rows) if (value := row[place]) is not None}
        values = set(printed.values())
        is_ranked = len(values) > 1 and (column.kind != "suite" or table.study.is_evaluated)
        top = (min if column.lower_is_better else max)(values) if is_ranked else None
        best.append({n for n, value in printed.items() if value == top})
    return best


def pair_rows(table: Table) -> list[list[str]]:
    """Names, group and the interval of each column of the paired differences."""
    rows = []
    for section in table.sections:
        for pair in section.pairs:
            columns = zip(table.study.columns, pair.differences, strict=True)
            cells = [MISSING if d is None else _interval(d, max(2, column_decimals(table, c))) for c, d in columns]
            rows.append([f"{pair.first} − {pair.second}", section.name, *cells])
    return rows


def _interval(difference: Difference, decimals: int) -> str:
    """`+1.35 [−0.26, +2.96], 4 of 5`: the repetitions in which it is positive, where there are several."""
    text = number(difference.difference, decimals, True)
    if difference.low is not None and difference.high is not None:
        text += f" [{number(difference.low, decimals, True)}, {number(difference.high, decimals, True)}]"
    if difference.num_positive is not None and difference.num_pairs > 1:
        text += f", {difference.num_positive} of {difference.num_pairs}"
    return text
