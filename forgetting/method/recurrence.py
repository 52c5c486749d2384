"""How many other responses say the same: what boilerplate has and no loss shows."""

import numpy as np
from jaxtyping import Float, Int, UInt64

from forgetting.corpus.tokens import TokenizedSplit
from forgetting.method.scores import mixed

LENGTH = 5
"""Tokens of a sequence that counts. Of fewer, common phrases recur; docs/results/smollm2.md says what was looked at."""


def recurrence(split: TokenizedSplit, counted: TokenizedSplit) -> Float[np.ndarray, " tokens"]:
    """Share of the responses in `counted` that hold a sequence of five tokens around a token.

    A response is one turn of a dialogue, and equal ones count as one, so that a reply that many branches of a
    conversation share does not recur. Of the sequences that hold a token, the one that recurs most counts; its own
    response does not. A response of fewer than five tokens has no sequence.

    Args:
        split: The tokens asked about.
        counted: D_train.

    Returns:
        One number per response token, in the order of the score store, float32.
    """
    hashes, responses, _ = _sequences(counted)
    order = np.lexsort((responses, hashes))
    hashes, responses = hashes[order], responses[order]
    is_new = np.ones(len(hashes), np.bool_)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (responses[1:] != responses[:-1])
    known, holders = np.unique(hashes[is_new], return_counts=True)
    everyone = np.unique(_responses(counted)[0])

    asked, own, starts = _sequences(split)
    shares = np.zeros(len(split.response_ids), np.float32)
    if not len(known):
        return shares
    place = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    others = np.where(known[place] == asked, holders[place] - np.isin(own, everyone), 0)
    share = (others / len(everyone)).astype(np.float32)
    for offset in range(LENGTH):
        shares[starts + offset] = np.maximum(shares[starts + offset], share)
    return shares


def _sequences(
    split: TokenizedSplit,
) -> tuple[UInt64[np.ndarray, " sequences"], UInt64[np.ndarray, " sequences"], Int[np.ndarray, " sequences"]]:
    """Of every five tokens of one response: their hash, the response's, and the place of the first."""
    tokens = split.response_ids.astype(np.uint64)
    of_response, lengths = _responses(split)
    ends = np.repeat(np.cumsum(lengths), lengths)
    starts = np.flatnonzero(np.arange(len(tokens)) + LENGTH <= ends)
    hashes = np.zeros(len(starts), np.uint64)
    for offset in range(LENGTH):
        hashes = mixed(hashes ^ tokens[starts + offset])
    return hashes, np.repeat(of_response, lengths)[starts], starts


def _responses(split: TokenizedSplit) -> tuple[UInt64[np.ndarray, " responses"], Int[np.ndarray, " responses"]]:
    """Hash and number of tokens of every response, each turn of a dialogue being one."""
    lengths = split.response_lengths
    firsts = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)
    # A sum, for it can be taken over all responses at once; the place of a token is in its term. Overflow is meant.
    terms = mixed(split.response_ids.astype(np.uint64) ^ mixed(within.astype(np.uint64)))
    return np.add.reduceat(terms, firsts) if len(firsts) else np.zeros(0, np.uint64), lengths
