"""What a page says of the whole corpus: counts at every step of the slider, a histogram, tokens' types."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from forgetting.inspection.detection import area_under_curve
from forgetting.inspection.examples import Examples
from forgetting.inspection.steps import counts_by_step

NUM_BINS = 80
NUM_SOURCES = 30
NUM_TYPES = 12
POSITIONS = ("first", "2–3", "4–7", "8–15", "16–31", "32–63", "64–127", "128–255", "256 and later", "last")
Groups = list[dict[str, Any]]


def summary(examples: Examples) -> dict[str, Any]:
    """Numbers of the whole corpus, for JSON.

    A group of response tokens has its `name`, its `total`, and at every step how many are `positive` and how many are
    `kept`, which is not negative.
    """
    num_tokens = len(examples.score)
    all_tokens = np.zeros(num_tokens, np.int64)
    content = {
        "rhos": examples.steps, "own": examples.own_step, "granularity": examples.selection.granularity,
        "scope": examples.selection.scope, "scoreThreshold": examples.selection.threshold,
        "forgetFraction": examples.selection.forget_fraction, "scoreName": examples.score_name,
        "numExamples": len(examples), "total": num_tokens, "above": float((examples.score > 0).mean()),
        "all": _groups(examples, all_tokens, ["all"])[0],
        "sources": _sources(examples), "positions": _positions(examples), "types": _types(examples),
        "noise": _noise(examples), "histogram": _histogram(examples),
        "colorLimit": short(np.percentile(np.abs(examples.score), 90)) or 1.0,
    }  # fmt: skip
    if examples.selection.granularity == "sequence":
        first = examples.first.positive[examples.starts]
        content["positiveSequences"] = counts_by_step(first, first * 0, 1, len(examples.steps))[0].tolist()
    return content


def short(value: Any) -> float:
    """A number with few digits."""
    return float(f"{float(value):.5g}")


def _groups(examples: Examples, group: Int[np.ndarray, " tokens"], names: Sequence[str | None]) -> Groups:
    totals = np.bincount(group, minlength=len(names)).tolist()
    first, num_steps = examples.first, len(examples.steps)
    positive = counts_by_step(first.positive, group, len(names), num_steps).tolist()
    kept = counts_by_step(first.kept, group, len(names), num_steps).tolist()
    values = zip(names, totals, positive, kept, strict=True)
    return [{"name": name, "total": n, "positive": p, "kept": k} for name, n, p, k in values if n]


def _sources(examples: Examples) -> Groups:
    """The largest sources; what is left of a corpus of many is one group."""
    names, codes, counts = np.unique(examples.sources, return_inverse=True, return_counts=True)
    group = np.full(len(names), NUM_SOURCES)
    largest = np.argsort(-counts, kind="stable")[:NUM_SOURCES]
    group[largest] = np.arange(len(largest))
    shown = [str(names[place]) for place in largest]
    shown += [""] * (NUM_SOURCES - len(shown)) + [f"{len(names) - len(largest)} smaller sources"]
    return _groups(examples, np.repeat(group[codes], examples.num_targets), shown)


def _positions(examples: Examples) -> Groups:
    """Places in the response, in powers of two; the last token, which ends most responses, has a group of its own."""
    place = np.arange(len(examples.score)) - np.repeat(examples.starts, examples.num_targets)
    group = np.minimum(np.log2(place + 1).astype(np.int64), len(POSITIONS) - 2)
    group[examples.starts + examples.num_targets - 1] = len(POSITIONS) - 1
    return _groups(examples, group, POSITIONS)


def _types(examples: Examples) -> dict[str, Any]:
    """Types of tokens that the experiment's own selection makes negative most often and least often."""
    ids, codes, counts = np.unique(examples.target_ids(), return_inverse=True, return_counts=True)
    negative = np.bincount(codes, examples.first.kept > examples.own_step, len(ids))
    least = max(5, len(examples.score) // 10_000)
    frequent = np.flatnonzero(counts >= least)
    fraction = (negative / counts)[frequent]
    highest, lowest = (frequent[np.lexsort((-counts[frequent], order))] for order in (-fraction, fraction))
    num_shown = min(NUM_TYPES, len(frequent) // 2)

    def groups(chosen: Int[np.ndarray, " types"]) -> Groups:
        place = np.full(len(ids), len(chosen))
        place[chosen] = np.arange(len(chosen))
        names = examples.names(ids[chosen].tolist())
        return _groups(examples, place[codes], [*names, "others"])[: len(chosen)]

    return {"least": least, "negative": groups(highest[:num_shown]), "kept": groups(lowest[:num_shown])}


def _noise(examples: Examples) -> dict[str, Any] | None:
    """The known noise by kind; None where the corpus knows none."""
    if examples.noise is None:
        return None
    kinds = _groups(examples, examples.noise.astype(np.int64), [None, *examples.noise_kinds])
    auc = area_under_curve(examples.score.astype(np.float64), examples.noise > 0)
    return {
        "auc": None if np.isnan(auc) else auc,
        "names": list(examples.noise_kinds),
        "kinds": [kind for kind in kinds if kind["name"] is not None],
    }


def _histogram(examples: Examples) -> dict[str, Any]:
    """Counts of the scores that are ranked, what lies far out being in the first and the last bin."""
    by_sequence = examples.selection.granularity == "sequence"
    ranked = examples.means if by_sequence else examples.score.astype(np.float64)
    low, high = np.percentile(ranked, [0.5, 99.5])
    low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        high = low + 1.0
    counts, _ = np.histogram(np.clip(ranked, low, high), NUM_BINS, (low, high))
    thresholds = None
    if examples.selection.scope == "corpus":
        first = examples.first.positive[examples.starts] if by_sequence else examples.first.positive
        num_positive = counts_by_step(first, first * 0, 1, len(examples.steps))[0]
        falling = np.sort(ranked)[::-1]
        thresholds = [short(falling[number - 1]) if number else None for number in num_positive.tolist()]
    return {"low": short(low), "high": short(high), "counts": counts.tolist(), "thresholds": thresholds}
