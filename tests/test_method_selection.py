"""The threshold against a stable sort; the selections of the paper as counts."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forgetting.errors import UserError
from forgetting.method.selection import SELECTS_NONE, Selection, Threshold, find_thresholds, threshold_of_top

ANY_SCORES = st.sampled_from([np.float32, np.float64]).flatmap(
    lambda dtype: arrays(
        dtype,
        st.integers(1, 60),
        # few distinct values, so that ties are the rule; zeros of both signs and the ends of float32 among them
        elements=st.sampled_from([-3.4e38, -3.5, -1e-30, -0.0, 0.0, 1e-45, 0.25, 0.25000003, 7.0, 3.4e38]),
    )
)


def by_sorting(scores: np.ndarray, count: int) -> np.ndarray:
    above = np.zeros(len(scores), dtype=bool)
    above[np.argsort(-scores, kind="stable")[:count]] = True
    return above


@settings(deadline=None, max_examples=300)
@given(ANY_SCORES, st.floats(0, 1), st.integers(1, 5))
def test_the_threshold_equals_a_stable_sort_whatever_the_chunks(scores, share, pieces):
    count = round(share * len(scores))
    threshold = threshold_of_top(lambda: np.array_split(scores, pieces), count)
    if threshold == SELECTS_NONE and count:
        pytest.fail("nothing is selected")
    np.testing.assert_array_equal(threshold.selects(scores, 0), by_sorting(scores, count))


@settings(deadline=None)
@given(ANY_SCORES, st.floats(0.01, 0.99))
def test_exactly_round_rho_n_are_positive_and_a_piece_knows_its_place(scores, rho):
    thresholds = find_thresholds(lambda: [scores], len(scores), Selection(positive_fraction=rho))
    positive, negative = thresholds.masks(scores, 0)
    assert positive.sum() == round(rho * len(scores)) == thresholds.num_positive
    assert (positive ^ negative).all()
    half = len(scores) // 2
    pieces = [thresholds.masks(scores[:half], 0)[0], thresholds.masks(scores[half:], half)[0]]
    np.testing.assert_array_equal(np.concatenate(pieces), positive)


@settings(deadline=None)
@given(ANY_SCORES, st.floats(0.05, 0.95), st.floats(0, 1))
def test_forget_fraction_takes_the_lowest_and_leaves_the_middle(scores, rho, part):
    share = part * (1 - rho)
    assume(round(rho * len(scores)) > 0)
    thresholds = find_thresholds(lambda: [scores], len(scores), Selection(rho, forget_fraction=share))
    positive, negative = thresholds.masks(scores, 0)
    assert not (positive & negative).any()
    assert negative.sum() == thresholds.num_negative == min(round(share * len(scores)), (~positive).sum())
    order = np.argsort(-scores, kind="stable")
    np.testing.assert_array_equal(np.flatnonzero(negative), np.sort(order[len(order) - negative.sum() :]))


def test_the_threshold_of_section_4_2_is_strict():
    scores = np.array([-1.0, -0.0, 0.0, 1e-9, 2.0], dtype=np.float32)
    thresholds = find_thresholds(lambda: [scores], 5, Selection(None, threshold=0.0))
    positive, negative = thresholds.masks(scores, 0)
    assert positive.tolist() == [False, False, False, True, True]
    assert (negative == ~positive).all()
    assert (thresholds.num_positive, thresholds.num_negative) == (2, 3)


BROKEN = [np.array([1.0, np.nan, np.nan]), np.array([np.inf, 1.0, -np.inf]), np.array([np.nan, 2.0, np.inf])]


@pytest.mark.parametrize("scores", BROKEN)
@pytest.mark.parametrize(
    "selection", [Selection(0.5), Selection(0.5, forget_fraction=0.3), Selection(None, threshold=0.0)]
)
def test_scores_that_are_not_finite_are_refused(scores, selection):
    with pytest.raises(UserError, match="2 scores are not finite"):
        find_thresholds(lambda: [scores.astype(np.float32)], 3, selection)


def test_a_selection_without_negative_tokens_says_so():
    scores = np.arange(10, dtype=np.float32)
    for selection in (Selection(0.96), Selection(0.5, forget_fraction=0.0), Selection(None, threshold=-1.0)):
        assert find_thresholds(lambda: [scores], 10, selection).num_negative == 0


def test_more_than_there_are_is_refused():
    with pytest.raises(UserError, match="fewer than 3"):
        threshold_of_top(lambda: [np.zeros(2)], 3)


def test_ties_fall_in_corpus_order():
    assert threshold_of_top(lambda: [np.zeros(10, np.float32)], 4) == Threshold(0.0, 4)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"positive_fraction": 0.0}, r"\(ρ\) is 0.0"),
        ({"positive_fraction": 1.0}, r"\(ρ\) is 1.0"),
        ({"positive_fraction": 70.0}, r"\(ρ\) is 70.0"),
        ({"forget_fraction": 0.4}, r"must lie in \[0, 0.3\]"),
        ({"positive_fraction": None, "forget_fraction": 0.1, "threshold": 0.0}, "exclude each other"),
        ({"threshold": 0.0}, "exclude each other"),
        ({"positive_fraction": None}, "Give data.positive_fraction"),
        ({"positive_fraction": "all", "threshold": 0.0}, "exclude each other"),
        ({"scope": "example", "granularity": "sequence"}, "excludes data.granularity sequence"),
        ({"scope": "example", "positive_fraction": None, "threshold": 0.0}, "excludes data.threshold 0.0"),
    ],
)
def test_impossible_selections_are_refused(settings_, message):
    with pytest.raises(UserError, match=message):
        Selection(**settings_)


def test_the_published_selection_differs_only_in_rounding():
    """The code sorts every token and takes int(N·ρ); ours takes round(N·ρ): at most one token apart."""
    scores = np.random.default_rng(0).normal(size=1001).astype(np.float32)
    ours = find_thresholds(lambda: [scores], 1001, Selection(0.7)).masks(scores, 0)[0]
    assert int(1001 * 0.7) == 700
    assert ours.sum() == 701
    assert by_sorting(scores, 700).sum() == 700
    assert (ours & by_sorting(scores, 700)).sum() == 700
