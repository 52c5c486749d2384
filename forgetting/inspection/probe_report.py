"""The report of a probe in tables and plain words."""

from collections.abc import Iterator, Sequence

import numpy as np

from forgetting.inspection.detection import Detection, Estimate
from forgetting.inspection.probe_measures import ProbeReport, Q


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
        f"Q. Negative are {_negatives(report)}; of a kind, the others are left out.", "", *_q_table(report), "",
        "## In words", "", *(f"- {line}" for line in _words(report)), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _negatives(report: ProbeReport) -> str:
    """Which tokens are negative, by the experiment's selection."""
    selection, negative = report.selection, _percent(report.of(Q, report.references[0]).negative_fraction)
    rho = f"ρ {selection.positive_fraction:g}"
    if selection.forget_fraction is not None:
        rho += f", data.forget_fraction {selection.forget_fraction:g}"
    if selection.granularity == "sequence":
        return f"the responses of the lowest means, with {negative} of the tokens ({rho}, whole responses)"
    return f"the lowest {negative}{' of each response' if selection.scope == 'example' else ''} ({rho})"


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
    return f"{planted}" if planted == wanted else f"{planted} of {wanted} wanted (it fits none of those left)"


def _auc_table(report: ProbeReport) -> list[str]:
    kinds = _planted_kinds(report)
    rows = [
        [m.candidate.name, m.reference or "none", str(m.found.noise.auc)]
        + [str(m.found.kinds[kind].auc) for kind in kinds]
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
            rows.append([reference, name, *map(str, values)])
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
            f"With the {reference} reference, {negative} of what is negative at ρ "
            f"{report.selection.positive_fraction:g} is clean text; of tokens drawn at random it would be "
            f"{_percent(1 - found.noise_fraction)}. {_for_rho(report, found)}"
        )
        best = report.best(reference)
        choice = f"`{best.candidate.name}` separates best of these scores (AUC {best.found.noise.auc})"
        if best.candidate.name == Q:
            yield f"With the {reference} reference, {choice}."
        else:
            yield (
                f"With the {reference} reference, {choice}: in a configuration {best.candidate.setting}. It was chosen "
                "by looking at this very noise, so confirm it with another --seed."
            )
    for agreement in report.agreements:
        correlation = "undefined" if agreement.spearman is None else f"{agreement.spearman:.2f}"
        yield (
            f"Between the {agreement.first} and the {agreement.second} reference, the rank correlation of Q is "
            f"{correlation}, and {_percent(agreement.changed)} of the tokens change sides."
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
    if low is None:
        return "Too few examples have noise to say what this means for ρ: take more (--train, --rates)."
    if low <= found.noise_fraction:
        return "The negatives do not hold more noise than a random choice would, so no ρ helps: do not select by it."
    negative, noise = found.negative_fraction, found.noise_fraction
    if abs(negative - noise) < 0.03:
        return "As many tokens are negative as are noise, so ρ is where it should be."
    side = "More" if negative > noise else "Fewer"
    if report.selection.forget_fraction is not None:
        return f"{side} tokens are negative than are noise (data.forget_fraction)."
    return f"{side} tokens are negative than are noise: ρ {1 - noise:.2f} would make them equal."


def _percent(fraction: float) -> str:
    return "an undefined share" if np.isnan(fraction) else f"{100 * fraction:.0f} %"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up."""
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in lines]
