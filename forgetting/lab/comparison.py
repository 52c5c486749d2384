"""The paper's comparison on generated worlds: rows, their means over worlds, and paired differences."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from forgetting.lab.quality import Detection

AVERAGE = "AVG"
BASE = "base"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        experiment: In `experiments/lab/`; or `BASE`.
        name: As in the paper's Table 3.
        positive_fraction: ρ, as the experiment has it.
    """

    experiment: str
    name: str
    positive_fraction: str = ""


ROWS = (
    Row("full", "Full Tokens"),
    Row("ignoring-sequence", "Ignoring (seq-level)", "0.5"),
    Row("ignoring-sequence-0.7", "Ignoring (seq-level)", "0.7"),
    Row("forgetting-sequence", "Forgetting (seq-level)", "0.7"),
    Row("ignoring-token", "Ignoring (token-level)", "0.5"),
    Row("ignoring-token-0.7", "Ignoring (token-level)", "0.7"),
    Row("forgetting-token", "Forgetting (token-level)", "0.7"),
)
"""In the order of Table 3, where Ignoring is at ρ 0.5; at 0.7 it differs from Forgetting in λ alone."""

PAIRS = (
    ("Forgetting − Ignoring, token, both ρ 0.7", "forgetting-token", "ignoring-token-0.7"),
    ("Forgetting − Ignoring, token, ρ as in Table 3", "forgetting-token", "ignoring-token"),
    ("Forgetting − Ignoring, sequence, both ρ 0.7", "forgetting-sequence", "ignoring-sequence-0.7"),
    ("Forgetting − Ignoring, sequence, ρ as in Table 3", "forgetting-sequence", "ignoring-sequence"),
    ("token − sequence, Forgetting", "forgetting-token", "forgetting-sequence"),
    ("token − sequence, Ignoring, both ρ 0.7", "ignoring-token-0.7", "ignoring-sequence-0.7"),
    ("Ignoring − Full Tokens, token, ρ 0.7", "ignoring-token-0.7", "full"),
    ("Full Tokens − Base", "full", BASE),
)
"""What is compared in pairs: the worlds differ far more from each other than the rows in one of them."""

FOUND = {
    "noise among response tokens": "noise_fraction",
    "AUC of Q against the noise": "auc",
    "precision of the negative tokens": "precision",
    "recall of the noise": "recall",
    "share of tokens with Q > 0": "positive_quality_fraction",
}

Scores = Mapping[str, float]
"""Percent by column, AVG among them."""


@dataclass(frozen=True)
class Outcome:
    """What one world gave.

    Attributes:
        seed: The world.
        scores: By experiment.
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

    def text(self, digits: int = 1) -> str:
        """Such as `43.7 ± 6.2`."""
        return f"{self.mean:.{digits}f}" + ("" if self.sd is None else f" ± {self.sd:.{digits}f}")


@dataclass(frozen=True)
class Difference:
    """A row minus another in the same worlds, in points of AVG.

    Attributes:
        name: What is compared.
        mean: Over worlds.
        standard_error: Of the mean; None of one world.
        num_positive: Worlds in which it is above 0.
        num_worlds: All of them.
    """

    name: str
    mean: float
    standard_error: float | None
    num_positive: int
    num_worlds: int

    def text(self) -> str:
        """Such as `+1.20 ± 0.42`."""
        return f"{self.mean:+.2f}" + ("" if self.standard_error is None else f" ± {self.standard_error:.2f}")


@dataclass(frozen=True)
class TextTable:
    """A table to be shown."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As GitHub's Markdown."""
        lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
        return f"{self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


class Comparison:
    """What several worlds gave.

    Args:
        outcomes: One a world, all with the same rows.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = outcomes
        there = outcomes[0].scores
        self.columns = list(there[BASE])
        self.rows = [row for row in (Row(BASE, "Base"), *ROWS) if row.experiment in there]
        self.pairs = [pair for pair in PAIRS if pair[1] in there and pair[2] in there]

    def spread(self, experiment: str, column: str) -> Spread:
        """A cell of the table."""
        return Spread.of([outcome.scores[experiment][column] for outcome in self.outcomes])

    def difference(self, name: str, first: str, second: str) -> Difference:
        """The paired difference of two experiments."""
        values = [outcome.scores[first][AVERAGE] - outcome.scores[second][AVERAGE] for outcome in self.outcomes]
        spread = Spread.of(values)
        error = None if spread.sd is None else spread.sd / math.sqrt(len(values))
        return Difference(name, spread.mean, error, sum(value > 0 for value in values), len(values))

    def found(self) -> dict[str, Spread]:
        """How well Q found the noise."""
        detections = [outcome.detection for outcome in self.outcomes]
        found = {text: Spread.of([getattr(one, name) for one in detections]) for text, name in FOUND.items()}
        for kind in detections[0].recall_by_kind:
            found[f"recall of {kind} noise"] = Spread.of([one.recall_by_kind[kind] for one in detections])
        return found

    def record(self) -> dict[str, Any]:
        """Everything, for JSON."""
        cells = {row.experiment: {c: asdict(self.spread(row.experiment, c)) for c in self.columns} for row in self.rows}
        return {
            "format": 1,
            "rows": cells,
            "differences": [asdict(self.difference(*pair)) for pair in self.pairs],
            "found": {name: asdict(spread) for name, spread in self.found().items()},
            "worlds": [asdict(outcome) for outcome in self.outcomes],
        }

    def tables(self) -> list[TextTable]:
        """The rows, the differences, and how well Q found the noise."""
        seeds = ", ".join(str(outcome.seed) for outcome in self.outcomes)
        many = len(self.outcomes) > 1
        over = f"mean ± sd over worlds {seeds}" if many else f"world {seeds}"
        pairs = [self.difference(*pair) for pair in self.pairs]
        return [
            TextTable(
                f"Accuracy in percent (Lingual: F1), {over}",
                ["", "ρ", *self.columns],
                [
                    [row.name, row.positive_fraction, *(self.spread(row.experiment, c).text() for c in self.columns)]
                    for row in self.rows
                ],
            ),
            TextTable(
                "Differences of AVG in the same world" + (", mean ± its standard error" if many else ""),
                ["", "difference", "positive in"],
                [[pair.name, pair.text(), f"{pair.num_positive} of {pair.num_worlds}"] for pair in pairs],
            ),
            TextTable(
                f"How well Q found the known noise of D_train (ρ 0.7), {over}",
                ["", "share"],
                [[name, spread.text(2)] for name, spread in self.found().items()],
            ),
        ]
