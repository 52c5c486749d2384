"""How well Q found the noise: the one place where the known noise meets the scores."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64

from forgetting.corpus.tokens import TokenizedCorpus
from forgetting.errors import UserError
from forgetting.lab.noise import Kind
from forgetting.method.masks import ScoredSplit, Selected
from forgetting.method.scores import LossReduction
from forgetting.method.selection import Selection
from forgetting.method.store import ScoreStore

KINDS = tuple(Kind)


@dataclass(frozen=True)
class Detection:
    """How well the negative side of a selection, and Q itself, match the known noise.

    Attributes:
        num_tokens: Response tokens of D_train.
        noise_fraction: Share of them that is noise.
        auc: Probability that a noisy token has a lower Q than a clean one (ties count half).
        positive_quality_fraction: Share of tokens with Q > 0.
        precision: Share of the negative tokens that is noise.
        recall: Share of the noise that is negative.
        recall_by_kind: The same for each kind of noise.
    """

    num_tokens: int
    noise_fraction: float
    auc: float
    positive_quality_fraction: float
    precision: float
    recall: float
    recall_by_kind: dict[str, float]


def known_noise(tokens: TokenizedCorpus, split: str) -> Int64[np.ndarray, " tokens"]:
    """The kind of every response token of a split, in the order of the score store, as places in `KINDS`.

    Raises:
        UserError: No source of the corpus knows its noise.
    """
    noise = tokens.split(split).noise
    if noise is None:
        raise UserError(f"No source of {tokens.folder.parent} names a column `noise`: give it, and prepare again.")
    return np.array([KINDS.index(Kind(kind)) for kind in (Kind.CLEAN, *tokens.noise_kinds)])[noise]


def area_under_curve(score: Float[np.ndarray, " n"], is_noise: Bool[np.ndarray, " n"]) -> float:
    """Probability that a noisy element's score is below a clean one's, ties counting half (Mann and Whitney)."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - (counts - 1) / 2
    num_clean, num_noise = int((~is_noise).sum()), int(is_noise.sum())
    if not num_clean or not num_noise:
        return float("nan")
    above = middle_rank[inverse][~is_noise].sum() - num_clean * (num_clean + 1) / 2
    return float(above / (num_clean * num_noise))


def detection(store: ScoreStore, kinds: Int64[np.ndarray, " tokens"], positive_fraction: float) -> Detection:
    """Compare a store's scores, and the cut at `positive_fraction` of all tokens, with the known noise.

    Raises:
        UserError: The store has another number of tokens than the corpus.
    """
    split = store.split("train")
    if split.num_tokens != len(kinds):
        raise UserError(f"{store.folder} scores {split.num_tokens} tokens, the corpus has {len(kinds)}.")
    scored = ScoredSplit(split, LossReduction())
    q = np.concatenate(list(scored.chunks()))
    thresholds = Selected(scored, Selection(positive_fraction)).thresholds
    assert thresholds is not None
    _, negative = thresholds.masks(q, 0)
    is_noise = kinds != KINDS.index(Kind.CLEAN)

    def share(mask: np.ndarray) -> float:
        return float(mask.mean()) if mask.size else float("nan")

    return Detection(
        num_tokens=len(q),
        noise_fraction=share(is_noise),
        auc=area_under_curve(q, is_noise),
        positive_quality_fraction=share(q > 0),
        precision=share(is_noise[negative]),
        recall=share(negative[is_noise]),
        recall_by_kind={
            kind.value: share(negative[kinds == number]) for number, kind in enumerate(KINDS) if kind is not Kind.CLEAN
        },
    )
