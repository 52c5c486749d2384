"""Scores: from the stored columns of response tokens to one number per token, by which they are ranked.

The highest are positive. A score of your own is a subclass of `Score` in any module, named by `data.score.class_path`
(docs/extending.md): if it needs only what is stored, it needs no new scoring pass.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt64

from forgetting.errors import UserError


@dataclass(frozen=True)
class StoredTokens:
    """Consecutive response tokens of a split, whole examples, as a store gives them: views, not copies.

    Attributes:
        split: `train` or `validation`.
        first: Place of the first token among all response tokens of the split.
        num_targets: Response tokens of each example; they add up to the tokens.
        columns: Values by name, one per token: `nll_base`, `nll_reference`, `nll_promptless` where it was asked for,
            `noise` where the corpus knows it, and `recurrence` where the score reads it.
    """

    split: str
    first: int
    num_targets: Int[np.ndarray, " examples"]
    columns: Mapping[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        """A column's values, one per token."""
        return self.columns[column]

    def __len__(self) -> int:
        return int(self.num_targets.sum())


class Score:
    """One number per response token.

    The value of a token depends on the token and its example alone: it is asked for shard by shard when the threshold
    is found, and example by example when masks are made.

    Attributes:
        columns: Stored columns that it reads.
    """

    columns: tuple[str, ...] = ()

    def __call__(self, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
        """Scores of the tokens, float32 or float64, finite."""
        raise NotImplementedError


class LossReduction(Score):
    """Q = nll_base − nll_reference: the reference's reduction of a token's loss (Taheri et al., TMLR 2026, Eq. 4-5)."""

    columns = ("nll_base", "nll_reference")

    def __call__(self, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
        """Q of the tokens, in nats."""
        return tokens["nll_base"] - tokens["nll_reference"]


@dataclass
class Combination(Score):
    """A weighted sum of the two nlls, smoothed over the tokens around each: Q is `base` 1, `reference` −1, `window` 0.

    Noise comes in spans, and a token's nll says little of it: the mean over a few neighbors says more. What each
    combination finds of known noise is measured by `python -m forgetting probe`.

    Args:
        base: Weight of nll_base.
        reference: Weight of nll_reference.
        window: Tokens on each side, in the same response, over which the sum is averaged.
    """

    base: float = 1.0
    reference: float = -1.0
    window: int = 0
    columns = ("nll_base", "nll_reference")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.base) and math.isfinite(self.reference)) or self.base == self.reference == 0:
            raise UserError(
                f"data.score has the weights base {self.base} and reference {self.reference}; expected two finite "
                "numbers that are not both 0."
            )
        if self.window < 0:
            raise UserError(f"data.score has the window {self.window}; expected 0 or more tokens on each side.")

    def __call__(self, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
        """The sum of each token, in nats, averaged over up to 2 · window + 1 tokens of its response."""
        value = self.base * tokens["nll_base"].astype(np.float64) + self.reference * tokens["nll_reference"]
        return _smoothed(value, tokens.num_targets, self.window) if self.window else value


@dataclass
class PromptFit(Score):
    """How well a response fits its prompt, and a token its response. It needs no reference.

    What the prompt explains of a response, nll_promptless − nll_base averaged over its tokens, is little where it
    answers another prompt: the base's instruction-following difficulty (Li et al., From Quantity to Quality, NAACL
    2024), there a ratio. To its `weight`-fold, up to a cap, the negative nll_base is added, averaged over the tokens
    around each.

    For a store with `nll_promptless` (`data.promptless`). docs/results/smollm2.md says how the defaults were chosen.

    Args:
        weight: Of what the prompt explains.
        cap: The most that counts of it, in nats a token: a prompt that holds half of the response explains no more.
        window: Tokens on each side over which nll_base is averaged.
    """

    weight: float = 8.0
    cap: float = 0.3
    window: int = 2
    columns = ("nll_base", "nll_promptless")

    def __post_init__(self) -> None:
        if not (0 <= self.weight < math.inf and self.cap > 0) or self.window < 0:
            raise UserError(
                f"data.score has the weight {self.weight}, the cap {self.cap} and the window {self.window}; expected a "
                "finite weight of at least 0, a cap above 0, and a number of tokens."
            )

    def __call__(self, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
        """In nats."""
        base, lengths = tokens["nll_base"].astype(np.float64), tokens.num_targets
        whole = int(lengths.max(initial=0))  # a window that is never left
        explained = _smoothed(tokens["nll_promptless"] - base, lengths, whole)
        return self.weight * np.minimum(explained, self.cap) - (
            _smoothed(base, lengths, self.window) if self.window else base
        )


RECURRENCE = "recurrence"
"""Column of the share of D_train's other responses that say the same (`recurrence.py`), made from the tokens."""


@dataclass
class NoBoilerplate(Score):
    """Another score, lowered by `penalty` where it is boilerplate: a sequence that recurs from response to response.

    Stock phrases are what a base and every reference find likely, so no score made of losses sees them. That they recur
    is what gives them away; n-grams that recur are what corpora are deduplicated by (Lee et al., Deduplicating Training
    Data Makes Language Models Better, ACL 2022). In data whose answers share a form, the form recurs too;
    with a vocabulary so small that five tokens are two words, common text does.

    Args:
        score: The other score.
        share: Of D_train's responses, those in which a sequence of five tokens must stand, its own apart. With fewer
            than a hundred of them, one is enough at the default.
        penalty: What is subtracted then, in the units of the other score.
    """

    score: Score
    share: float = 0.01
    penalty: float = 10.0

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 < self.penalty < math.inf):
            raise UserError(
                f"data.score has the share {self.share} and the penalty {self.penalty}; expected a share above 0 and "
                "at most 1, and a finite penalty above 0."
            )
        self.columns = (*self.score.columns, RECURRENCE)

    def __call__(self, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
        """In the units of the other score."""
        return self.score(tokens) - np.float32(self.penalty) * (tokens[RECURRENCE] >= self.share)


def _smoothed(
    value: Float[np.ndarray, " tokens"], lengths: Int[np.ndarray, " examples"], window: int
) -> Float[np.ndarray, " tokens"]:
    """Mean over the tokens at most `window` away that belong to the same example."""
    smoothed = np.empty_like(value)
    first = 0
    for length in lengths.tolist():
        # Sums start anew in each example: a value may then depend on nothing but its own, to the last bit.
        sums = np.concatenate([[0.0], np.cumsum(value[first : first + length])])
        places = np.arange(length)
        low, high = np.maximum(places - window, 0), np.minimum(places + window + 1, length)
        smoothed[first : first + length] = (sums[high] - sums[low]) / (high - low)
        first += length
    return smoothed


@dataclass
class Random(Score):
    """A control: tokens are drawn at random, at equal ρ.

    Args:
        seed: Of the draw.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"data.score has the seed {self.seed}; it must be 0 or more, and below 2 to the 32.")

    def __call__(self, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
        """Uniform in [0, 1), a hash of the seed and the token's place in its split."""
        key = np.uint64(2 * self.seed + (tokens.split != "train"))
        places = tokens.first + np.arange(len(tokens), dtype=np.uint64)
        return (mixed(mixed(key.reshape(1)) ^ places) >> np.uint64(11)) * 2.0**-53


@dataclass
class Oracle(Score):
    """A control: every clean token ranks above every noisy one, at random among equals.

    For a corpus whose sources name a column `noise` (docs/corpus.md): nothing else looks at it.

    Args:
        seed: Of the order among equals.
    """

    seed: int = 0
    columns = ("noise",)

    def __call__(self, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
        """In [1, 2) for clean tokens, in [0, 1) for noisy ones."""
        return (tokens["noise"] == 0) + Random(self.seed)(tokens)


def score_histogram(
    chunks: Callable[[], Iterable[np.ndarray]], num_bins: int = 100
) -> tuple[Int[np.ndarray, " bins"], Float[np.ndarray, " edges"]]:
    """Counts of scores in equal bins, in two passes and in memory that does not grow with the corpus.

    The bins cover four standard deviations around the mean, or less where there are no such scores: a few outliers
    would leave the others in one bin. What lies beyond is counted in the outermost bin.

    Args:
        chunks: Gives the scores a chunk at a time, as often as it is called; at least one score.
        num_bins: How many bins.

    Returns:
        The counts, and the edges of the bins, one more than there are bins.
    """
    count, total, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    for scores in chunks():
        if len(scores):
            values = scores.astype(np.float64)
            count, total, squares = count + len(values), total + values.sum(), squares + np.square(values).sum()
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    mean = total / count
    width = 4 * math.sqrt(max(squares / count - mean**2, 0.0))
    low, high = max(low, mean - width), min(high, mean + width)
    edges = np.linspace(low, high, num_bins + 1) if low < high else np.linspace(low - 0.5, low + 0.5, num_bins + 1)
    counts = np.zeros(num_bins, np.int64)
    for scores in chunks():
        counts += np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
    return counts, edges


def mixed(value: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """SplitMix64: a bijection of 64 bits whose output looks random (Steele et al., 2014). Overflow is meant."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def checked(score: Score, tokens: StoredTokens) -> Float[np.ndarray, " tokens"]:
    """Scores of the tokens, of the shape and kind that selection needs.

    Raises:
        UserError: The score gave something else than one finite float per token.
    """
    values = np.asarray(score(tokens))
    count, name = len(tokens), type(score).__name__
    if values.shape != (count,):
        raise UserError(f"The score {name} gave an array of shape {values.shape}; one number per token, ({count},).")
    if values.dtype not in (np.float32, np.float64):
        raise UserError(f"The score {name} gave {values.dtype}; float32 or float64 was expected.")
    refuse_not_finite(values)
    return values


def refuse_not_finite(scores: np.ndarray) -> None:
    """Refuse scores that say nothing about their token, and in a mean nothing about its sequence."""
    if broken := int(np.count_nonzero(~np.isfinite(scores))):
        raise UserError(
            f"{broken} scores are not finite numbers: one of the two models gave a token an nll that is none, or the "
            "score divides by zero. Score again, with model.dtype float32 or bfloat16; if it stays so, the base or the "
            "reference's adapter is damaged."
        )
