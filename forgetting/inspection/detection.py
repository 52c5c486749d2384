"""Detection of known noise: how well a score, and the negative masks that follow from it, find the noisy tokens.

Every measure is of noisy against clean response tokens: of all noise, and of each kind apart, the other kinds left out.
Intervals are bootstrapped over examples, since the tokens of one example are alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from forgetting.errors import UserError

CONFIDENCE = 0.95
FEWEST = 10
"""Examples with noise below which there is no interval: a bootstrap of so few is far too short."""
MEASURES = ("auc", "average_precision", "precision", "recall")
"""Measures of all noise, and of each kind."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; NaN where it is not defined, None where nothing was resampled."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        """For a table: `0.91 [0.90, 0.93]`."""
        if np.isnan(self.value):
            return "undefined"
        interval = "" if self.low is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.value:.2f}{interval}"


@dataclass(frozen=True)
class Detected:
    """Detection of one kind of noise, or of all.

    Attributes:
        num_tokens: Noisy response tokens.
        num_examples: Examples that hold some; 0 where examples were not told apart.
        auc: Probability that a noisy token has a lower score than a clean one, ties counting half (Mann and Whitney).
        average_precision: Mean over the noisy tokens of the precision among all tokens of at most their score. A score
            that knows nothing has the noise's share of the tokens.
        precision: Share of the negative tokens that is noise.
        recall: Share of the noise that is negative.
    """

    num_tokens: int
    num_examples: int
    auc: Estimate
    average_precision: Estimate
    precision: Estimate
    recall: Estimate


@dataclass(frozen=True)
class Detection:
    """Detection of the known noise of a split.

    Attributes:
        num_tokens: Response tokens.
        noise_fraction: Fraction of them that is noise.
        negative_fraction: Fraction that is negative.
        positive_score_fraction: Fraction with a score above 0.
        noise: Of all noise.
        kinds: Of each kind.
    """

    num_tokens: int
    noise_fraction: float
    negative_fraction: float
    positive_score_fraction: float
    noise: Detected
    kinds: Mapping[str, Detected]

    def measure(self, key: str) -> float | None:
        """A measure by its name in a study, `auc` or `recall/<kind>`; None where it is not defined.

        Raises:
            UserError: The corpus knows no such kind of noise.
        """
        name, is_of_kind, kind = key.partition("/")
        if name not in MEASURES:
            value = float(getattr(self, name))
        elif is_of_kind and kind not in self.kinds:
            raise UserError(f"There is no noise of the kind {kind!r}; there is {', '.join(self.kinds)}.")
        else:
            value = getattr(self.kinds[kind] if is_of_kind else self.noise, name).value
        return None if np.isnan(value) else value


def detection(
    score: Float[np.ndarray, " tokens"],
    negative_mask: Bool[np.ndarray, " tokens"],
    noise: UInt8[np.ndarray, " tokens"],
    kinds: Sequence[str],
    num_targets: Int[np.ndarray, " examples"] | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> Detection:
    """Compare a score and negative masks with known noise.

    Args:
        score: Of every response token.
        negative_mask: Tokens that are unlearned or, where nothing is, left out.
        noise: 0 of a clean token, else 1 + the place of its kind.
        kinds: Names of the kinds.
        num_targets: Response tokens of each example, for intervals.
        resamples: How often the examples are drawn anew for the intervals; 0 computes none, and there is none either of
            noise in fewer than ten examples.
        seed: Of the resampling.
    """
    is_noise = noise > 0
    lengths = np.zeros(0, np.int64) if num_targets is None else num_targets
    draws = np.zeros((0, len(lengths)), np.int64)
    if resamples and len(lengths):
        even = np.full(len(lengths), 1 / len(lengths))
        draws = np.random.default_rng(seed).multinomial(len(even), even, size=resamples)

    def detected(wanted: Bool[np.ndarray, " tokens"]) -> Detected:
        part = wanted | ~is_noise
        num_examples = len(np.unique(np.repeat(np.arange(len(lengths)), lengths)[wanted])) if len(lengths) else 0
        # How often each example was drawn, told to its tokens one draw at a time: all at once would not fit.
        weights = (np.repeat(draw, lengths)[part] for draw in draws if num_examples >= FEWEST)
        return _detected(score[part], negative_mask[part], wanted[part], num_examples, weights)

    return Detection(
        num_tokens=len(score),
        noise_fraction=_fraction(is_noise),
        negative_fraction=_fraction(negative_mask),
        positive_score_fraction=_fraction(score > 0),
        noise=detected(is_noise),
        kinds={kind: detected(noise == code) for code, kind in enumerate(kinds, start=1)},
    )


def area_under_curve(score: Float[np.ndarray, " n"], is_noise: Bool[np.ndarray, " n"]) -> float:
    """Probability that a noisy element's score is below a clean one's, ties counting half; NaN without both."""
    return _Ranking(score, is_noise).measures(np.ones(len(score)))[0]


class _Ranking:
    """Elements sorted by score once, so that measures of many weightings are sums."""

    def __init__(self, score: Float[np.ndarray, " n"], is_noise: Bool[np.ndarray, " n"]) -> None:
        self._order = np.argsort(score, kind="stable")
        ranked = score[self._order]
        self._starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]])[: len(ranked)])
        self._is_noise = is_noise[self._order]

    def measures(self, weight: Float[np.ndarray, " n"] | Int[np.ndarray, " n"]) -> tuple[float, float]:
        """Area under the curve and average precision, where each element counts as often as its weight says."""
        if not len(self._order):
            return float("nan"), float("nan")
        ranked = weight[self._order].astype(np.float64)
        # Sums over elements of equal score, from the lowest score up.
        noise = np.add.reduceat(np.where(self._is_noise, ranked, 0.0), self._starts)
        clean = np.add.reduceat(np.where(self._is_noise, 0.0, ranked), self._starts)
        num_noise, num_clean = noise.sum(), clean.sum()
        if not num_noise or not num_clean:
            return float("nan"), float("nan")
        above = num_clean - clean.cumsum()
        area = float((noise * (above + clean / 2)).sum() / (num_noise * num_clean))
        below = (noise + clean).cumsum()
        precision = np.divide(noise.cumsum(), below, out=np.zeros_like(below), where=below > 0)
        return area, float((noise * precision).sum() / num_noise)


def _detected(
    score: np.ndarray, negative: np.ndarray, is_noise: np.ndarray, num_examples: int, draws: Iterator[np.ndarray]
) -> Detected:
    ranking = _Ranking(score, is_noise)

    def measured(weight: np.ndarray) -> list[float]:
        both, unlearned, noisy = (float(weight[mask].sum()) for mask in (negative & is_noise, negative, is_noise))
        return [*ranking.measures(weight), _ratio(both, unlearned), _ratio(both, noisy)]

    values = measured(np.ones(len(score)))
    resampled = np.array([measured(draw) for draw in draws])
    outside = (1 - CONFIDENCE) / 2
    estimates: dict[str, Estimate] = {}
    for place, (name, value) in enumerate(zip(MEASURES, values, strict=True)):
        defined = resampled[:, place][~np.isnan(resampled[:, place])] if len(resampled) else resampled
        if np.isnan(value) or not len(defined):
            estimates[name] = Estimate(value)
        else:
            estimates[name] = Estimate(value, *map(float, np.quantile(defined, [outside, 1 - outside])))
    return Detected(int(is_noise.sum()), num_examples, **estimates)


def _fraction(mask: np.ndarray) -> float:
    return float(mask.mean()) if mask.size else float("nan")


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
