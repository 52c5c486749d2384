"""How many other responses say the same: what boilerplate has and no loss shows."""

import numpy as np
from jaxtyping import Float, Int, UInt64

from forgetting.corpus.tokens import TokenizedSplit
from forgetting.method.scores import mixed

LENGTH = 5
"""Tokens of a sequence that counts. Of fewer, common phrases recur; docs/results/smollm2.md says what was looked at."""


def recurrence(split: TokenizedSplit, counted: TokenizedSplit) -> Float[np.ndarray, " tokens"]:
    """Share of the examples of `counted` whose responses hold a sequence of five tokens around a token.

    Of the sequences that hold a token, the one that recurs most counts; a token's own example does not. A response of
    fewer than five tokens has none. Sequences are told apart by a hash of 64 bits.

    Args:
        split: The tokens asked about.
        counted: D_train.

    Returns:
        One number per response token, in the order of the score store, float32.
    """
    hashes, _ = _sequences(counted)
    of_example = np.repeat(np.arange(len(counted)), np.maximum(counted.num_targets - LENGTH + 1, 0))
    order = np.lexsort((of_example, hashes))
    hashes, of_example = hashes[order], of_example[order]
    is_new = np.ones(len(hashes), np.bool_)  # in its example, where one sequence may stand twice
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (of_example[1:] != of_example[:-1])
    known, examples = np.unique(hashes[is_new], return_counts=True)

    asked, starts = _sequences(split)
    shares = np.zeros(len(split.response_ids), np.float32)
    if not len(known):
        return shares
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    others = np.where(known[place] == asked, examples[place], 0) - (split.name == counted.name)
    share = (others / len(counted)).astype(np.float32)
    for offset in range(LENGTH):
        shares[starts + offset] = np.maximum(shares[starts + offset], share)
    return shares


def _sequences(split: TokenizedSplit) -> tuple[UInt64[np.ndarray, " sequences"], Int[np.ndarray, " sequences"]]:
    """Hash of every sequence of five response tokens of one example, and the place of its first token."""
    tokens = split.response_ids.astype(np.uint64)
    ends = np.repeat(np.cumsum(split.num_targets, dtype=np.int64), split.num_targets)
    starts = np.flatnonzero(np.arange(len(tokens)) + LENGTH <= ends)
    hashes = np.zeros(len(starts), np.uint64)
    for offset in range(LENGTH):
        hashes = mixed(hashes ^ tokens[starts + offset])
    return hashes, starts
