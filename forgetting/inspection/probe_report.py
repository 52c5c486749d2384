"""Report of a probe: which kinds of planted noise each score finds, how far two references agree, and what it means."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from forgetting.inspection.detection import Detection, Estimate, detection
from forgetting.method.masks import ScoredSplit, Selected
from forgetting.method.scores import Combination, LossReduction, Oracle, PromptFit, Random, Score
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
        arguments = f", init_args: {{{', '.join(f'{k}: {v}' for k, v in vars(self.score).items())}}}"
        score = f"data.score: {{class_path: {type(self.score).__name__}{arguments if vars(self.score) else ''}}}"
        and_so = {"scope: example": self.within, "promptless: true": PROMPTLESS in self.score.columns}
        return " and ".join([f"`{score}`", *(f"`data.{setting}`" for setting, is_so in and_so.items() if is_so)])


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
    Candidate("random (control)", Random(), reads_reference=False, is_control=True),
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
        Agreement(a, b, _spearman(q[a][0], q[b][0]), float((q[a][1] != q[b][1]).mean())) for a, b in combinations(q, 2)
    ]
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
    found = report.measured[0].found
    lines = ["# Which noise is found", "", *_planted(report), ""]
    if not found.noise.num_tokens:
        lines += ["**No noise was planted, so there is nothing to find: AUC, precision and recall are undefined.**", ""]
        return "\n".join(lines)
    lines += [
        "AUC: the probability that a noisy token has a lower score than a clean one (0.5 knows nothing, 1 knows",
        "all), with a 95 % interval over examples. A low nll counts as good.", "", *_auc_table(report), "",
        f"Q. Negative are the lowest {_percent(1 - report.positive_fraction)} (ρ {report.positive_fraction:g}); "
        "of a kind, the others are left out.", "", *_q_table(report), "",
        "## In words", "", *(f"- {line}" for line in _words(report)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _planted(report: ProbeReport) -> Iterator[str]:
    found = report.measured[0].found
    yield (
        f"D_train has {found.num_tokens:,} response tokens, {found.noise.num_tokens:,} of them noise "
        f"({_percent(found.noise_fraction)})."
    )
    yield ""
    rows: list[list[str]] = []
    for kind in report.counts["train"]:
        tokens = found.kinds[kind].num_tokens if kind in found.kinds else 0
        planted = [_count(*report.counts[split].get(kind, (0, 0))) for split in ("train", "reference")]
        rows.append([kind, *planted, f"{tokens:,}"])
    yield from _table(["planted", "examples of D_train", "of a noisy D_ref", "noisy tokens of D_train"], rows)
    if report.cut:
        yield ""
        yield f"In {report.cut} examples of D_train noise lies behind the cut at data.max_length and does not count."


def _count(planted: int, wanted: int) -> str:
    return f"{planted}" if planted == wanted else f"{planted} of {wanted} wanted (nothing to change in the others)"


def _auc_table(report: ProbeReport) -> list[str]:
    kinds = _planted_kinds(report)
    rows = [
        [m.candidate.name, m.reference or "none", _estimate(m.found.noise.auc)]
        + [_estimate(m.found.kinds[kind].auc) for kind in kinds]
        for m in report.measured
    ]
    return _table(["AUC", "reference", "all noise", *kinds], rows)


def _q_table(report: ProbeReport) -> list[str]:
    rows: list[list[str]] = []
    for reference in report.references:
        found = report.of(Q, reference)
        for name, detected in [
            ("all noise", found.noise),
            *((kind, found.kinds[kind]) for kind in _planted_kinds(report)),
        ]:
            values = (detected.average_precision, detected.precision, detected.recall)
            rows.append([reference, name, *map(_estimate, values)])
    return _table(
        ["reference", "noise", "average precision", "of the negatives, noise", "of the noise, negative"], rows
    )


def _planted_kinds(report: ProbeReport) -> list[str]:
    return [kind for kind, found in report.measured[0].found.kinds.items() if found.num_tokens]


def _words(report: ProbeReport) -> Iterator[str]:
    for reference in report.references:
        found = report.of(Q, reference)
        verdicts = {kind: _verdict(found.kinds[kind].auc) for kind in _planted_kinds(report)}
        said = [
            f"{verdict}: {', '.join(kind for kind, other in verdicts.items() if other == verdict)}"
            for verdict in VERDICTS if verdict in verdicts.values()
        ]  # fmt: skip
        yield f"With the {reference} reference, Q {'; '.join(said)}."
        negative = _percent(1 - found.noise.precision.value)
        yield (
            f"With the {reference} reference, {negative} of what would be ignored or unlearned at ρ "
            f"{report.positive_fraction:g} is clean text; of tokens drawn at random it would be "
            f"{_percent(1 - found.noise_fraction)}. {_for_rho(report, found)}"
        )
        best = report.best(reference)
        choice = f"`{best.candidate.name}` separates best of these scores (AUC {_estimate(best.found.noise.auc)})"
        if best.candidate.name == Q:
            yield f"With the {reference} reference, {choice}."
        else:
            yield (
                f"With the {reference} reference, {choice}: in a configuration {best.candidate.setting}. It was chosen "
                "by looking at this very noise, so confirm it with another --seed."
            )
    for agreement in report.agreements:
        yield (
            f"Between the {agreement.first} and the {agreement.second} reference, the rank correlation of Q is "
            f"{agreement.spearman:.2f}, and {_percent(agreement.changed)} of the tokens change sides."
        )
    yield (
        "All this is of the planted kinds, with this base, this D_ref and this learning rate. What is wrong with your "
        "data may be of another kind."
    )


VERDICTS = ("finds", "finds little of", "does not see", "takes for good text", "has too few examples of")
"""What Q does with a kind of noise: AUC from 0.7, above 0.5, with 0.5 in its interval, below 0.5; no interval."""


def _verdict(auc: Estimate) -> str:
    if auc.low is None or auc.high is None:
        return VERDICTS[4]
    if auc.low > 0.5:
        return VERDICTS[0] if auc.value >= 0.7 else VERDICTS[1]
    return VERDICTS[3] if auc.high < 0.5 else VERDICTS[2]


def _for_rho(report: ProbeReport, found: Detection) -> str:
    """What it means for ρ."""
    low = found.noise.precision.low
    if low is None or low <= found.noise_fraction:
        return "The negatives do not hold more noise than a random choice would, so no ρ helps: do not select by it."
    negative, noise = 1 - report.positive_fraction, found.noise_fraction
    if abs(negative - noise) < 0.03:
        return "As many tokens are negative as are noise, so ρ is where it should be."
    side = "More" if negative > noise else "Fewer"
    return f"{side} tokens are negative than are noise: ρ {1 - noise:.2f} would make them equal."


def _estimate(estimate: Estimate) -> str:
    if np.isnan(estimate.value):
        return "undefined"
    interval = "" if estimate.low is None else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"


def _percent(fraction: float) -> str:
    return "an undefined share" if np.isnan(fraction) else f"{100 * fraction:.0f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in lines]
