"""Report of a probe: which kinds of planted noise each score finds, how far two references agree, and what it means."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from forgetting.inspection.detection import Detection, Estimate, detection
from forgetting.method.masks import ScoredSplit, Selected
from forgetting.method.scores import Combination, LossReduction, Oracle, Random, Score
from forgetting.method.selection import Selection
from forgetting.method.store import StoredSplit

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


CANDIDATES = (
    Candidate("Q (the paper's)", LossReduction()),
    Candidate("Q, smoothed", Combination(1.0, -1.0, WINDOW)),
    Candidate("Q, within the response", LossReduction(), within=True),
    Candidate("reference nll", Combination(0.0, -1.0)),
    Candidate("reference nll, smoothed", Combination(0.0, -1.0, WINDOW)),
    Candidate("reference nll, within the response", Combination(0.0, -1.0), within=True),
    Candidate("Q − reference nll", Combination(1.0, -2.0)),
    Candidate("Q − reference nll, smoothed", Combination(1.0, -2.0, WINDOW)),
    Candidate("base nll", Combination(-1.0, 0.0), reads_reference=False),
    Candidate("base nll, smoothed", Combination(-1.0, 0.0, WINDOW), reads_reference=False),
    Candidate("random (control)", Random(), reads_reference=False, is_control=True),
    Candidate("known noise (control)", Oracle(), reads_reference=False, is_control=True),
)
"""What is compared. A low nll counts as good: the scores are the negative nlls."""


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
        spearman: Rank correlation of Q over all response tokens; NaN where one of them is constant.
        changed: Fraction of the tokens that are positive with one and negative with the other.
    """

    first: str
    second: str
    spearman: float
    changed: float


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        measured: Each candidate with each reference.
        agreements: Of every two references.
        positive_fraction: ρ of the selection.
        counts: By split and kind, in how many examples noise was planted, and in how many it was wanted.
        cut: Examples of D_train whose noise lies wholly behind the cut at `max_length`.
    """

    measured: Sequence[Measured]
    agreements: Sequence[Agreement]
    positive_fraction: float
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
            "positive_fraction": self.positive_fraction, "planted": self.counts, "cut": self.cut, "scores": rows,
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
        selection: What makes a token negative; not "all".
        counts: See `ProbeReport`.
        cut: See `ProbeReport`.
        seed: Of the resampling.
    """
    measured: list[Measured] = []
    negatives: dict[str, np.ndarray] = {}
    for candidate in CANDIDATES:
        for reference, stored in stores.items() if candidate.reads_reference else [("", next(iter(stores.values())))]:
            values, negative = _selected(stored, candidate, selection)
            if candidate is CANDIDATES[0]:
                negatives[reference] = negative
            noise = stored.column("noise")
            found = detection(values, negative, noise, kinds, stored.num_targets(), RESAMPLES, seed)
            measured.append(Measured(candidate, reference, found))
    q = {name: np.concatenate(list(ScoredSplit(stored, LossReduction()).chunks())) for name, stored in stores.items()}
    names = list(stores)
    agreements = [
        Agreement(a, b, _spearman(q[a], q[b]), float((negatives[a] != negatives[b]).mean()))
        for n, a in enumerate(names) for b in names[n + 1 :]
    ]  # fmt: skip
    assert isinstance(selection.positive_fraction, float), "something is selected"
    return ProbeReport(measured, agreements, selection.positive_fraction, counts, cut)


def _selected(
    stored: StoredSplit, candidate: Candidate, selection: Selection
) -> tuple[Float[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]:
    """Scores of all tokens, and which of them are negative."""
    scored = ScoredSplit(stored, candidate.score)
    values = np.concatenate(list(scored.chunks())).astype(np.float64)
    if candidate.within:
        selection = Selection(selection.positive_fraction, scope="example")
        values = _ranks_within(values, stored.num_targets())
    masks = Selected(scored, selection).masks(scored)
    return values, np.concatenate([masks(example)[1] for example in range(len(stored))])


def _ranks_within(
    values: Float[np.ndarray, " tokens"], lengths: Int[np.ndarray, " examples"]
) -> Float[np.ndarray, " tokens"]:
    """Rank of each token among those of its example, as a fraction."""
    parts = np.split(values, np.cumsum(lengths)[:-1])
    return np.concatenate([rankdata(part) / max(len(part), 1) for part in parts])


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    a, b = rankdata(first), rankdata(second)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else float("nan")


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and np.isnan(content) else content


# --- in words and tables ---------------------------------------------------------------------------------------------


def probe_text(report: ProbeReport) -> str:
    """The report as Markdown that reads well in a terminal."""
    noise = report.measured[0].found
    lines = ["# Which noise is found", "", *_planted(report), ""]
    if not noise.noise.num_tokens:
        lines += ["**No noise was planted, so there is nothing to find: AUC, precision and recall are undefined.**", ""]
        return "\n".join(lines)
    lines += [
        "AUC: the probability that a noisy token has a lower score than a clean one (0.5: the score knows nothing; 1: it "
        "knows all), with a 95 % interval over examples.", "", *_auc_table(report), "",
        f"At ρ {report.positive_fraction:g}, the tokens that Q makes negative (noise among all tokens: "
        f"{noise.noise_fraction:.2f}):", "", *_negatives_table(report), "",
    ]  # fmt: skip
    lines += ["## In words", "", *(f"- {line}" for line in _words(report)), ""]
    return "\n".join(lines)


def _planted(report: ProbeReport) -> Iterator[str]:
    found = report.measured[0].found
    yield (
        f"D_train has {found.num_tokens:,} response tokens, {found.noise.num_tokens:,} of them noise "
        f"({_percent(found.noise_fraction)})."
    )
    yield ""
    rows = []
    for kind in report.counts["train"]:
        tokens = found.kinds[kind].num_tokens if kind in found.kinds else 0
        planted = [_count(*report.counts[split].get(kind, (0, 0))) for split in ("train", "reference")]
        rows.append([kind, *planted, f"{tokens:,}"])
    yield from _table(["planted", "examples of D_train", "of a noisy D_ref", "noisy tokens of D_train"], rows)
    if report.cut:
        yield ""
        yield f"In {report.cut} examples of D_train the noise lies behind the cut at data.max_length and is not counted."


def _count(planted: int, wanted: int) -> str:
    return f"{planted}" if planted == wanted else f"{planted} of {wanted} wanted: nothing to change in the others"


def _auc_table(report: ProbeReport) -> list[str]:
    kinds = [kind for kind, found in report.measured[0].found.kinds.items() if found.num_tokens]
    rows = [
        [m.candidate.name, m.reference or "none", _estimate(m.found.noise.auc)]
        + [_estimate(m.found.kinds[kind].auc) for kind in kinds]
        for m in report.measured
    ]
    return _table(["score", "reference", "all noise", *kinds], rows)


def _negatives_table(report: ProbeReport) -> list[str]:
    rows = []
    for reference in report.references:
        found = report.of(CANDIDATES[0].name, reference)
        for name, detected in [("all noise", found.noise), *found.kinds.items()]:
            if detected.num_tokens:
                precision = _estimate(detected.precision) if name == "all noise" else ""
                rows.append([reference, name, precision, _estimate(detected.recall)])
    return _table(
        ["reference", "noise", "share of the negative tokens that is noise", "share of it that is negative"], rows
    )


def _words(report: ProbeReport) -> Iterator[str]:
    for reference in report.references:
        found = report.of(CANDIDATES[0].name, reference)
        verdicts = {kind: _verdict(detected.auc) for kind, detected in found.kinds.items() if detected.num_tokens}
        said = [
            f"{words}: {', '.join(kind for kind, verdict in verdicts.items() if verdict == words)}"
            for words in dict.fromkeys(verdicts.values())
        ]
        yield f"Q with the {reference} reference {'; '.join(said)}. On all noise it {_verdict(found.noise.auc)}."
        precision = found.noise.precision.value
        if not np.isnan(precision):
            yield (
                f"With the {reference} reference, {_percent(1 - precision)} of what would be ignored or unlearned at ρ "
                f"{report.positive_fraction:g} is clean text; tokens drawn at random would give "
                f"{_percent(1 - found.noise_fraction)}. {_for_rho(report, found)}"
            )
        best = report.best(reference)
        yield (
            f"Among these scores, {best.candidate.name} separates best where the reference is {reference} (AUC "
            f"{_estimate(best.found.noise.auc)}). That is a choice by looking at these kinds of noise: confirm it on "
            "another seed."
        )
    for agreement in report.agreements:
        yield (
            f"Q of the {agreement.first} and of the {agreement.second} reference: rank correlation "
            f"{agreement.spearman:.2f}; {_percent(agreement.changed)} of the tokens change sides."
        )
    yield (
        "This is of the planted kinds, with this base, reference and learning rate. What is wrong with your own data may "
        "be of another kind."
    )


def _verdict(auc: Estimate) -> str:
    if auc.low is None or auc.high is None or np.isnan(auc.value):
        return "cannot be judged by (too few examples)"
    if auc.low > 0.5:
        return "finds" if auc.value >= 0.7 else "finds a little of"
    return "prefers to clean text" if auc.high < 0.5 else "does not see"


def _for_rho(report: ProbeReport, found: Detection) -> str:
    """What it means for ρ."""
    low = found.noise.precision.low
    if low is None or low <= found.noise_fraction:
        return "No ρ mends that: the negatives hold no more noise than a random choice, so do not train on them."
    negative = 1 - report.positive_fraction
    if negative > found.noise_fraction:
        return (
            f"More tokens are negative ({_percent(negative)}) than are noise ({_percent(found.noise_fraction)}): a ρ "
            f"up to {1 - found.noise_fraction:.2f} would spare clean ones."
        )
    return f"Fewer tokens are negative ({_percent(negative)}) than are noise: a ρ down to {1 - found.noise_fraction:.2f} has room."


def _estimate(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "undefined"
    interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    line: Callable[[Sequence[str]], str] = lambda cells: (
        "| "
        + " | ".join(  # noqa: E731
            cell.ljust(width) for cell, width in zip(cells, widths, strict=True)
        )
        + " |"
    )
    return [line(header), "| " + " | ".join("-" * width for width in widths) + " |", *map(line, rows)]
