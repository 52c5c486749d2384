"""What a probe measures: which kinds of planted noise each score finds, and how far two references agree."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from forgetting.inspection.detection import Detection, detection
from forgetting.method.health import spearman
from forgetting.method.masks import ScoredSplit, Selected
from forgetting.method.scores import Combination, LossReduction, NoBoilerplate, Oracle, PromptFit, Random, Score
from forgetting.method.selection import Selection
from forgetting.method.store import PROMPTLESS, StoredSplit

RESAMPLES = 200
WINDOW = 4
"""Tokens on each side over which the smoothed scores are averaged."""


@dataclass(frozen=True)
class Candidate:
    """A score that is compared.

    Attributes:
        name: In the report.
        score: The lower, the more like noise.
        reads_reference: Whether it depends on the reference.
        within: Whether tokens are ranked within their response, as `data.scope: example` selects.
        is_control: Whether it says how the measures behave, and is no choice.
    """

    name: str
    score: Score
    reads_reference: bool = True
    within: bool = False
    is_control: bool = False

    @property
    def setting(self) -> str:
        """How an experiment names it."""
        score = f"data.score: {_as_configured(self.score)}"
        and_so = {"scope: example": self.within, "promptless: true": PROMPTLESS in self.score.columns}
        return " and ".join([f"`{score}`", *(f"`data.{setting}`" for setting, is_so in and_so.items() if is_so)])


def _as_configured(score: Score) -> str:
    arguments = {field.name: getattr(score, field.name) for field in fields(score)} if is_dataclass(score) else {}
    values = ", ".join(f"{k}: {_as_configured(v) if isinstance(v, Score) else v}" for k, v in arguments.items())
    return f"{{class_path: {type(score).__name__}{f', init_args: {{{values}}}' if values else ''}}}"


Q = "Q (the paper's)"
CANDIDATES = (
    Candidate(Q, LossReduction()),
    Candidate("Q, smoothed", Combination(1.0, -1.0, WINDOW)),
    Candidate("Q, within the response", LossReduction(), within=True),
    Candidate("reference nll", Combination(0.0, -1.0)),
    Candidate("reference nll, smoothed", Combination(0.0, -1.0, WINDOW)),
    Candidate("reference nll, within the response", Combination(0.0, -1.0), within=True),
    Candidate("Q − reference nll", Combination(1.0, -2.0)),
    Candidate("Q − reference nll, smoothed", Combination(1.0, -2.0, WINDOW)),
    Candidate("base nll", Combination(-1.0, 0.0), reads_reference=False),
    Candidate("base nll, smoothed", Combination(-1.0, 0.0, WINDOW), reads_reference=False),
    Candidate("prompt fit", PromptFit(), reads_reference=False),
    Candidate("Q, no boilerplate", NoBoilerplate(LossReduction())),
    Candidate("prompt fit, no boilerplate", NoBoilerplate(PromptFit()), reads_reference=False),
    Candidate("random (control)", Random(), reads_reference=False, is_control=True),
    Candidate("random, within the response (control)", Random(), reads_reference=False, within=True, is_control=True),
    Candidate("known noise (control)", Oracle(), reads_reference=False, is_control=True),
)
"""What is compared: the scores are the negative nlls."""


@dataclass(frozen=True)
class Measured:
    """A candidate with one reference, and what it found."""

    candidate: Candidate
    reference: str
    found: Detection


@dataclass(frozen=True)
class Agreement:
    """Agreement of Q between two references.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        spearman: Rank correlation of Q over all response tokens; None where one of them is constant.
        changed: Fraction of the tokens that are positive with one and negative with the other.
    """

    first: str
    second: str
    spearman: float | None
    changed: float


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        measured: Each candidate with each reference.
        agreements: Of every two references.
        selection: What makes a token negative.
        counts: By split and kind, in how many examples noise was planted, and in how many it was wanted.
        cut: Examples of D_train whose noise lies wholly behind the cut at `max_length`.
    """

    measured: Sequence[Measured]
    agreements: Sequence[Agreement]
    selection: Selection
    counts: Mapping[str, Mapping[str, tuple[int, int]]]
    cut: int

    def of(self, name: str, reference: str) -> Detection:
        """What a candidate found with a reference."""
        return next(
            m.found for m in self.measured
            if m.candidate.name == name and m.reference == (reference if m.candidate.reads_reference else "")
        )  # fmt: skip

    def best(self, reference: str) -> Measured:
        """The candidate of highest AUC that needs this reference or none, controls apart."""
        usable = [m for m in self.measured if m.reference in (reference, "") and not m.candidate.is_control]
        return max(usable, key=lambda m: m.found.noise.auc.value)

    @property
    def references(self) -> list[str]:
        """Names of the references."""
        return list(dict.fromkeys(m.reference for m in self.measured if m.reference))

    def as_json(self) -> dict[str, Any]:
        """All numbers, for a file; what is not defined is null."""
        rows = [{"score": m.candidate.name, "reference": m.reference or None, **asdict(m.found)} for m in self.measured]
        return _without_nan({
            "selection": self.selection.record(), "planted": self.counts, "cut": self.cut, "scores": rows,
            "agreement": [asdict(agreement) for agreement in self.agreements],
        })  # fmt: skip


def measure_probe(
    stores: Mapping[str, StoredSplit],
    kinds: Sequence[str],
    selection: Selection,
    counts: Mapping[str, Mapping[str, tuple[int, int]]],
    cut: int,
    seed: int,
) -> ProbeReport:
    """Measure every candidate with every reference.

    Args:
        stores: Columns of D_train, `noise` among them, by the reference that scored them; the same tokens in each.
        kinds: Of noise, in the order of their codes.
        selection: What makes a token negative: by a fraction, for a threshold is of one score.
        counts: See `ProbeReport`.
        cut: See `ProbeReport`.
        seed: Of the resampling.
    """
    some = next(iter(stores.values()))
    noise, lengths = some.column("noise"), some.num_targets()
    measured: list[Measured] = []
    q: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for candidate in CANDIDATES:
        for reference, stored in stores.items() if candidate.reads_reference else [("", some)]:
            values, negative = _selected(stored, candidate, selection)
            if candidate.name == Q:
                q[reference] = values, negative
            found = detection(values, negative, noise, kinds, lengths, RESAMPLES, seed)
            measured.append(Measured(candidate, reference, found))
    agreements = [
        Agreement(a, b, _correlation(q[a][0], q[b][0]), float((q[a][1] != q[b][1]).mean()))
        for a, b in combinations(q, 2)
    ]
    assert isinstance(selection.positive_fraction, float), "something is selected"
    return ProbeReport(measured, agreements, selection, counts, cut)


def _selected(
    stored: StoredSplit, candidate: Candidate, selection: Selection
) -> tuple[Float[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]:
    """Scores of all tokens, and which of them are negative."""
    scored = ScoredSplit(stored, candidate.score)
    values = np.concatenate(list(scored.chunks())).astype(np.float64)
    if candidate.within:
        selection = replace(selection, granularity="token", scope="example")
        values = _ranks_within(values, stored.num_targets())
    masks = Selected(scored, selection).masks(scored)
    return values, np.concatenate([masks(example)[1] for example in range(len(stored))])


def _ranks_within(
    values: Float[np.ndarray, " tokens"], lengths: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " tokens"]:
    """Rank of each token among those of its example, as a fraction whose mean is ½ whatever their number."""
    parts = np.split(values, np.cumsum(lengths)[:-1])
    return np.concatenate([(rankdata(part) - 0.5) / max(len(part), 1) for part in parts])


def _correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    return spearman(lambda: iter([(first.astype(np.float32), second.astype(np.float32))]))


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and np.isnan(content) else content
