"""The paper's comparison on generated worlds: rows, their means over worlds, and paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from forgetting.lab.quality import Detection

AVERAGE = "AVG"
BASE = "Base"


@dataclass(frozen=True)
class Row:
    """A row of the table: its name, and the experiment in `experiments/lab/` that makes it."""

    name: str
    experiment: str


ROWS = (
    Row("Full Tokens", "full"),
    Row("Ignoring (seq-level)", "ignoring-sequence"),
    Row("Ignoring (seq-level), ρ 0.7", "ignoring-sequence-0.7"),
    Row("Forgetting (seq-level)", "forgetting-sequence"),
    Row("Ignoring (token-level)", "ignoring-token"),
    Row("Ignoring (token-level), ρ 0.7", "ignoring-token-0.7"),
    Row("Forgetting (token-level)", "forgetting-token"),
)
"""In the order of the paper's Table 3. Ignoring is at ρ 0.5 as there; at 0.7 it differs from Forgetting in λ alone."""

PAIRS = (
    ("Forgetting (token-level)", "Ignoring (token-level), ρ 0.7"),
    ("Forgetting (token-level)", "Ignoring (token-level)"),
    ("Forgetting (seq-level)", "Ignoring (seq-level), ρ 0.7"),
    ("Forgetting (seq-level)", "Ignoring (seq-level)"),
    ("Forgetting (token-level)", "Forgetting (seq-level)"),
    ("Ignoring (token-level)", "Full Tokens"),
    ("Full Tokens", BASE),
)

Scores = Mapping[str, float]
"""Percent by column, AVG among them."""


@dataclass(frozen=True)
class Outcome:
    """What one world gave.

    Attributes:
        seed: The world.
        scores: By row.
        detection: How well Q found the noise, at the ρ of Forgetting.
    """

    seed: int
    scores: Mapping[str, Scores]
    detection: Detection


@dataclass(frozen=True)
class Spread:
    """A mean over worlds with its standard deviation (over n − 1; None of one world)."""

    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Mean and standard deviation of `values`."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits: int = 1, sign: str = "") -> str:
        """Such as `43.7 ± 6.2`."""
        return f"{self.mean:{sign}.{digits}f}" + ("" if self.sd is None else f" ± {self.sd:.{digits}f}")


@dataclass(frozen=True)
class Difference:
    """A row minus another in the same worlds, in points of AVG.

    Attributes:
        first: The row that is subtracted from.
        second: The row that is subtracted.
        mean: Over worlds.
        standard_error: Of the mean; None of one world.
        num_positive: Worlds in which the first is better.
        num_worlds: All of them.
    """

    first: str
    second: str
    mean: float
    standard_error: float | None
    num_positive: int
    num_worlds: int

    def text(self) -> str:
        """Such as `+1.20 ± 0.42`."""
        return f"{self.mean:+.2f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2f}")


@dataclass(frozen=True)
class Comparison:
    """What several worlds gave."""

    outcomes: Sequence[Outcome]

    @property
    def columns(self) -> list[str]:
        """Tasks, then AVG."""
        return list(self.outcomes[0].scores[BASE])

    @property
    def rows(self) -> list[str]:
        """Names of the rows, Base first."""
        return [BASE, *(row.name for row in ROWS)]

    def spread(self, row: str, column: str) -> Spread:
        """A cell of the table."""
        return Spread.of([outcome.scores[row][column] for outcome in self.outcomes])

    def difference(self, first: str, second: str) -> Difference:
        """The paired difference of two rows."""
        values = [outcome.scores[first][AVERAGE] - outcome.scores[second][AVERAGE] for outcome in self.outcomes]
        spread = Spread.of(values)
        error = None if spread.sd is None else spread.sd / math.sqrt(len(values))
        return Difference(first, second, spread.mean, error, sum(value > 0 for value in values), len(values))

    def found(self) -> dict[str, Spread]:
        """How well Q found the noise."""
        measures = {
            "noise among response tokens": "noise_fraction",
            "AUC of Q against the noise": "auc",
            "precision of the negative tokens": "precision",
            "recall of the noise": "recall",
            "share of tokens with Q > 0": "positive_quality_fraction",
        }
        found = {
            text: Spread.of([getattr(outcome.detection, name) for outcome in self.outcomes])
            for text, name in measures.items()
        }
        for kind in self.outcomes[0].detection.recall_by_kind:
            recalls = [outcome.detection.recall_by_kind[kind] for outcome in self.outcomes]
            found[f"recall of {kind} noise"] = Spread.of(recalls)
        return found

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "format": 1,
            "seeds": [outcome.seed for outcome in self.outcomes],
            "rows": {row: {c: asdict(self.spread(row, c)) for c in self.columns} for row in self.rows},
            "differences": [asdict(self.difference(*pair)) for pair in PAIRS],
            "found": {name: asdict(spread) for name, spread in self.found().items()},
            "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """The three tables as title, head and rows of text."""
        seeds = [outcome.seed for outcome in self.outcomes]
        over = f"world {seeds[0]}" if len(seeds) == 1 else f"mean ± sd over worlds {', '.join(map(str, seeds))}"
        scores = [[row, *(self.spread(row, column).text() for column in self.columns)] for row in self.rows]
        pairs = [self.difference(*pair) for pair in PAIRS]
        differences = [[f"{p.first} − {p.second}", p.text(), f"{p.num_positive} of {p.num_worlds}"] for p in pairs]
        error = "" if len(seeds) == 1 else ", ± its standard error"
        return [
            (f"Accuracy in percent (Lingual: F1), {over}", ["", *self.columns], scores),
            (f"Differences in the same world, AVG{error}", ["", "difference", "positive in"], differences),
            ("How well Q found the known noise of D_train, at ρ 0.7", ["", over],
             [[name, spread.text(2)] for name, spread in self.found().items()]),
        ]  # fmt: skip

    def markdown(self) -> str:
        """The tables as GitHub's Markdown."""
        parts = []
        for title, head, rows in self.tables():
            lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
            parts.append(f"{title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
        return "\n".join(parts)
