"""The study of selection health as tables: which warning fires where Q finds the known noise, and where it does not.

    python experiments/health/table.py docs/results/health.json

prints the tables of docs/health.md. Thresholds are chosen on the worlds of CHOOSING; everything shown is of the others.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

from forgetting.artifacts import read_json

Record = dict[str, Any]
CHOOSING = range(200, 300)
"""Numbers of the worlds that thresholds are chosen on."""

WORKS = 0.75
"""AUC from which on selection counts as working: half way between the 0.86 of the lab's worlds and the 0.64 of the best
of those in which docs/lab.md found that forgetting does not work."""

EXPECTED = 0.3
"""Fraction of the tokens that is negative, 1 − ρ."""


@dataclass(frozen=True)
class Candidate:
    """A warning that might be given.

    Attributes:
        text: What is compared with the threshold.
        value: A world's, from its figures.
        fires: On which side of the threshold.
        threshold: Given by what it means; None chooses it.
    """

    text: str
    value: Callable[[Record], float | None]
    fires: Literal["above", "below"]
    threshold: float | None = None

    def is_beyond(self, value: float | None, threshold: float) -> bool:
        """Whether it fires."""
        if value is None:
            return False
        return value > threshold if self.fires == "above" else value < threshold

    def chosen(self, worlds: Sequence[Record]) -> float | None:
        """The threshold, from the worlds that are there to choose it.

        Half way between the outermost world in which selection works and the median of the failing ones beyond it, so
        that it fires in none of the former. None where no failing world lies beyond.
        """
        if self.threshold is not None:
            return self.threshold
        outermost = max if self.fires == "above" else min
        limit = outermost(value for value in map(self.value, filter(works, worlds)) if value is not None)
        failing = [self.value(world) for world in worlds if not works(world)]
        beyond = [value for value in failing if value is not None and self.is_beyond(value, limit)]
        return (limit + median(beyond)) / 2 if beyond else None


def figure(name: str) -> Callable[[Record], float | None]:
    """A figure by its name."""
    return lambda world: world["figures"].get(name)


def of_group(prefix: str, summary: Callable[[Iterable[float]], float]) -> Callable[[Record], float | None]:
    """A summary of the negative fractions of sources."""
    return lambda world: summary(value for name, value in world["figures"].items() if name.startswith(prefix))


def _relative(name: str) -> Callable[[Record], float | None]:
    return lambda world: world["figures"][name] / world["figures"]["nll_base"]


def _largest_share(world: Record) -> float:
    """Share of the negatives that lies in the source with most, less that source's share of the tokens."""
    figures, prefix = world["figures"], "negative_fraction/source/"
    sources = [name.removeprefix(prefix) for name in figures if name.startswith(prefix)]
    tokens = {name: figures[f"tokens/{name}"] for name in sources}
    negative = {name: figures[prefix + name] * tokens[name] for name in sources}
    largest = max(sources, key=negative.__getitem__)
    return negative[largest] / sum(negative.values()) - tokens[largest] / sum(tokens.values())


SOURCE, FIRST = "negative_fraction/source/", "negative_fraction/position/1"
LOW_CORRELATION = Candidate("correlation of Q with nll_base", figure("base_correlation"), "below")
FIRST_TOKENS = Candidate("negative fraction of first tokens", figure(FIRST), "below")
CANDIDATES = (
    Candidate("held-out nll fell by (nats)", figure("nll_reduction"), "below", 0.0),
    Candidate("held-out nll fell by, of the base's", _relative("nll_reduction"), "below"),
    Candidate("fraction with Q > 0", figure("positive_score_fraction"), "below"),
    Candidate("fraction with Q > 0", figure("positive_score_fraction"), "above"),
    Candidate("correlation of Q with nll_base", figure("base_correlation"), "above"),
    LOW_CORRELATION,
    Candidate("negative fraction of the source with the highest", of_group(SOURCE, max), "above"),
    Candidate("a source's share of the negatives, less its share of the tokens", _largest_share, "above"),
    Candidate("negative fraction of first tokens", figure(FIRST), "above"),
    FIRST_TOKENS,
    Candidate("standard deviation of Q, of the base's nll", _relative("spread"), "above"),
    Candidate("standard deviation of Q, of the base's nll", _relative("spread"), "below"),
    Candidate("part of the mass of Q that is positive", figure("positive_mass"), "above"),
    Candidate("part of the mass of Q that is positive", figure("positive_mass"), "below"),
    Candidate("part of the variance of Q that lies between examples", figure("between_examples"), "above"),
)


def works(world: Record) -> bool:
    """Whether Q finds the noise of a world."""
    return world["auc"] >= WORKS


def kinds_table(worlds: Sequence[Record]) -> list[str]:
    """What selection is worth in each kind of world, and its figures."""
    columns = {
        "AUC": lambda w: w["auc"], "precision": lambda w: w["precision"], "noise": lambda w: w["noise_fraction"],
        "nll fell by": figure("nll_reduction"), "Q > 0": figure("positive_score_fraction"),
        "ρ(Q, nll_base)": figure("base_correlation"), "first token": figure(FIRST),
        "source with most": of_group(SOURCE, max),
    }  # fmt: skip
    lines = [_row("world", "works in", *columns), _row("---", *["---:"] * (len(columns) + 1))]
    for kind, of_kind in _by_kind(worlds).items():
        values = [[value for world in of_kind if (value := get(world)) is not None] for get in columns.values()]
        cells = [f"{mean(column):.2f}" if column else "" for column in values]
        lines.append(_row(kind, f"{sum(map(works, of_kind))} of {len(of_kind)}", *cells))
    return lines


def candidates_table(choosing: Sequence[Record], worlds: Sequence[Record]) -> list[str]:
    """How often each candidate fires where selection works and where it fails."""
    good, bad = [w for w in worlds if works(w)], [w for w in worlds if not works(w)]
    lines = [_row("candidate", "fires", f"works ({len(good)})", f"fails ({len(bad)})", "kinds of failing worlds"),
             _row("---", "---", "---:", "---:", "---")]  # fmt: skip
    for candidate in CANDIDATES:
        threshold = candidate.chosen(choosing)
        if threshold is None:
            lines.append(
                _row(candidate.text, candidate.fires, "", "", "no threshold separates the worlds to choose by")
            )
            continue
        fired = {id(w) for w in worlds if candidate.is_beyond(candidate.value(w), threshold)}
        by_kind = {
            kind: (sum(id(w) in fired for w in of_kind), len(of_kind)) for kind, of_kind in _by_kind(bad).items()
        }
        listed = ", ".join(f"{kind} {count}/{total}" for kind, (count, total) in by_kind.items() if count)
        numbers = (str(sum(id(w) in fired for w in group)) for group in (good, bad))
        lines.append(_row(candidate.text, f"{candidate.fires} {threshold:.3g}", *numbers, listed))
    return lines


def tables(records: Sequence[Record]) -> str:
    """Both tables, of the worlds that no threshold was chosen on."""
    trained = [record for record in records if "failed" not in record]
    choosing = [record for record in trained if record["seed"] in CHOOSING]
    worlds = [record for record in trained if record["seed"] not in CHOOSING]
    return "\n".join([*kinds_table(worlds), "", *candidates_table(choosing, worlds)])


def _by_kind(worlds: Sequence[Record]) -> dict[str, list[Record]]:
    kinds = dict.fromkeys(world["kind"] for world in worlds)
    return {kind: [world for world in worlds if world["kind"] == kind] for kind in kinds}


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON file that experiments/health/worlds.py writes")
    print(tables(read_json(parser.parse_args().results, list)))
