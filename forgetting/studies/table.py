"""A table that is ready to be written: numbers, differences, notes, and what is missing."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from forgetting.studies.pairs import Pair
from forgetting.studies.spec import Row, Study, Value


@dataclass
class Line:
    """A row with its numbers, one per column.

    Attributes:
        row: As specified.
        ours: Mean and sample standard deviation over repetitions; None is missing.
        values: Value per repetition, for each column.
        num_runs: Repetitions that count.
        folders: Of the runs that count, by repetition.
        commands: Make what the first incomplete repetition lacks.
        num_further: Further repetitions that lack something.
        stale: Results that do not count lie in its folders.
    """

    row: Row
    ours: list[Value | None]
    values: list[dict[str, float]] = field(default_factory=list)
    num_runs: int = 0
    folders: Mapping[str, Path] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    num_further: int = 0
    stale: bool = False


@dataclass
class Section:
    """A group with its numbers."""

    name: str
    lines: list[Line]
    pairs: list[Pair] = field(default_factory=list)


@dataclass(frozen=True)
class Missing:
    """Rows that lack the same, the commands that make it, and ` (and 2 more seeds)` where these lack something too."""

    rows: str
    commands: list[str]
    further: str


@dataclass
class Table:
    """A study with its numbers.

    Attributes:
        study: Its specification.
        sections: One per group.
        facts: Notes on how the numbers were made.
        problems: Notes on what is wrong with them.
        everything: The command that makes all that is missing.
    """

    study: Study
    sections: list[Section]
    facts: list[str]
    problems: list[str]
    everything: str

    def missing(self) -> list[Missing]:
        """Rows that lack something, those with the same commands together."""
        rows: dict[tuple[tuple[str, ...], int], list[str]] = {}
        for section in self.sections:
            for line in section.lines:
                if line.commands:
                    key = tuple(line.commands), line.num_further
                    rows.setdefault(key, []).append(f"{line.row.name} ({section.name})")
        parts = []
        for (commands, num_further), names in rows.items():
            further = f" (and {counted(num_further, f'more {self.study.repetition}')})" if num_further else ""
            parts.append(Missing(", ".join(names), list(commands), further))
        return parts

    def notes(self) -> list[str]:
        """Notes below the table."""
        return [*self.facts, *self.problems, *(f"On the paper: {note}" for note in self.study.footnotes())]


def counted(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def summary(values: Sequence[float]) -> Value | None:
    """Mean and sample standard deviation (over n − 1); none of one value."""
    if not values:
        return None
    return Value(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)
