"""The masks that training sees are the selection, example by example."""

import pickle

import numpy as np
import pytest

from forgetting.method.masks import ByScore, EveryToken
from forgetting.method.selection import Selection
from forgetting.method.store import ScoreStore, close_store, shard_ranges, write_shard

COUNTS = np.random.default_rng(1).integers(1, 9, 60)


@pytest.fixture
def store(tmp_path) -> ScoreStore:
    generator = np.random.default_rng(0)
    base = np.round(generator.normal(size=COUNTS.sum()), 1).astype(np.float32)  # with ties
    reference = np.round(generator.normal(size=COUNTS.sum()), 1).astype(np.float32)
    ranges, offsets = shard_ranges("train", len(COUNTS), 7), np.concatenate([[0], np.cumsum(COUNTS)])
    for r in ranges:
        tokens = slice(offsets[r.first], offsets[r.last])
        write_shard(tmp_path, r, {}, COUNTS[r.first : r.last], base[tokens], reference[tokens])
    close_store(tmp_path, {}, ranges, {})
    return ScoreStore.open(tmp_path)


@pytest.mark.parametrize("rho", [0.05, 0.5, 0.7, 0.93])
def test_the_masks_of_all_examples_are_the_top_of_a_stable_sort(store, rho):
    split = store.split("train")
    masks = ByScore(split, store.sides(Selection(rho)), "token")
    positive = np.concatenate([masks(i)[0] for i in range(len(COUNTS))])
    q = split.nll_base - split.nll_reference
    expected = np.zeros(len(q), dtype=bool)
    expected[np.argsort(-q, kind="stable")[: round(rho * len(q))]] = True
    np.testing.assert_array_equal(positive, expected)
    np.testing.assert_array_equal(np.concatenate([masks(i)[1] for i in range(len(COUNTS))]), ~expected)


@pytest.mark.parametrize("rho", [0.05, 0.5, 0.7, 0.93])
def test_by_sequence_all_tokens_of_an_example_are_on_one_side(store, rho):
    masks = ByScore(store.split("train"), store.sides(Selection(rho, "sequence")), "sequence")
    sides = [set(masks(i)[0].tolist()) for i in range(len(COUNTS))]
    assert all(len(side) == 1 for side in sides)
    assert sum(True in side for side in sides) == round(rho * len(COUNTS))


def test_a_token_after_the_corpus_that_equals_the_threshold_is_not_above_the_cut(store):
    split = store.split("train")
    sides = store.sides(Selection(0.5))
    here, after = ByScore(split, sides, "token"), ByScore(split, sides, "token", len(split), split.num_tokens)
    ties = [split.example(i)[1] == np.float32(sides.positive.threshold) for i in range(len(COUNTS))]
    differing = [here(i)[0] != after(i)[0] for i in range(len(COUNTS))]
    assert any(d.any() for d in differing)
    assert all((tie | ~d).all() for tie, d in zip(ties, differing, strict=True))


def test_every_token_is_positive_without_scores():
    positive, negative = EveryToken(np.array([2, 5]))(1)
    assert positive.tolist() == [True] * 5
    assert not negative.any()


def test_a_worker_process_is_sent_the_places_of_the_scores_and_not_the_scores(store):
    masks = ByScore(store.split("train"), store.sides(Selection(0.7)), "token")
    sent = pickle.dumps(masks)
    there = pickle.loads(sent)  # noqa: S301 - what the line before made
    for i in range(len(COUNTS)):
        np.testing.assert_array_equal(there(i), masks(i))
    assert store.split("train").nll_base.tobytes()[:32] not in sent
