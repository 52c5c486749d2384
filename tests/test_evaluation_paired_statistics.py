"""Intervals and tests of paired differences against closed forms and simulations."""

from math import comb

import numpy as np
import pytest
from scipy.stats import ttest_rel

from forgetting.evaluation.paired_statistics import (
    detectable_difference,
    holm,
    is_binary,
    mcnemar_p,
    percentile_interval,
    resampled_means,
    student_p,
)

NUM_SIMULATIONS = 2000


def simulated_answers(num_documents: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Right-or-wrong answers of two correlated models in 2,000 evaluations, and the true A − B."""
    draws = np.random.default_rng(0).random((NUM_SIMULATIONS, num_documents))
    both, only_a, only_b = 0.4, 0.15, 0.10
    a = draws < both + only_a
    b = (draws < both) | ((draws >= both + only_a) & (draws < both + only_a + only_b))
    return a.astype(float), b.astype(float), only_a - only_b


def simulated_scores(num_documents: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores such as F1 of two models that share the documents' difficulty, and the true A − B."""
    generator = np.random.default_rng(0)
    difficulty, *noise = generator.normal(size=(3, NUM_SIMULATIONS, num_documents))
    return difficulty + 0.3 * noise[0] + 0.05, difficulty + 0.3 * noise[1], 0.05


def coverage(a: np.ndarray, b: np.ndarray, truth: float) -> float:
    """The fraction of simulated pairs whose 95% interval holds the truth."""
    draws = resampled_means(a - b, is_binary(a, b), 1000, np.random.default_rng(0))
    low, high = percentile_interval(draws, 0.95)
    return float(np.mean((low <= truth) & (truth <= high)))


def test_the_interval_of_right_or_wrong_answers_covers_the_truth_as_often_as_it_says() -> None:
    assert 0.94 <= coverage(*simulated_answers(200)) <= 0.96


def test_the_interval_of_other_scores_covers_the_truth_as_often_as_it_says() -> None:
    """The control pairs each document with another one, as two independent samples would be: far too wide."""
    a, b, truth = simulated_scores(200)
    assert 0.94 <= coverage(a, b, truth) <= 0.96
    assert coverage(a, np.roll(b, 1, axis=1), truth) > 0.99


def test_a_plain_bootstrap_of_few_discordant_answers_is_too_short_and_ours_is_not() -> None:
    """Of 30 documents, 7.5% are answered by A alone and 2.5% by B alone: three in an evaluation."""
    draws = np.random.default_rng(0).random((NUM_SIMULATIONS, 30))
    differences = (draws < 0.075).astype(float) - (draws > 0.975)
    covered = []
    for binary in (False, True):
        low, high = percentile_interval(resampled_means(differences, binary, 1000, np.random.default_rng(0)), 0.95)
        covered.append(np.mean((low <= 0.05) & (high >= 0.05)))
    assert covered[0] < 0.92
    assert covered[1] > 0.94


def test_answers_that_are_all_the_same_leave_an_interval_of_some_length() -> None:
    same = np.zeros((1, 50))
    low, high = percentile_interval(resampled_means(same, True, 2000, np.random.default_rng(0)), 0.95)
    assert low[0] < 0 < high[0]
    assert not resampled_means(same, False, 10, np.random.default_rng(0)).any()


def test_parts_of_a_resampling_do_not_change_its_law(monkeypatch: pytest.MonkeyPatch) -> None:
    differences = np.random.default_rng(0).normal(size=(2, 30))
    whole = resampled_means(differences, False, 4000, np.random.default_rng(1))
    monkeypatch.setattr("forgetting.evaluation.paired_statistics.MEMORY", 700)
    parts = resampled_means(differences, False, 4000, np.random.default_rng(1))
    np.testing.assert_array_equal(whole, parts)
    expected = differences.std(axis=1) / np.sqrt(30)
    np.testing.assert_allclose(whole.std(axis=0), expected, rtol=0.05)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (9, 3), (3, 9), (5, 5), (20, 41), (0, 12)])
def test_mcnemars_p_is_the_binomial_tail_of_a_fair_coin_twice(only_a: int, only_b: int) -> None:
    number = only_a + only_b
    tail = sum(comb(number, k) for k in range(min(only_a, only_b) + 1)) / 2**number
    assert mcnemar_p(only_a, only_b) == pytest.approx(min(1.0, 2 * tail))


def test_mcnemars_test_rejects_a_true_hypothesis_at_most_as_often_as_it_says() -> None:
    """And finds a difference that is there."""
    generator = np.random.default_rng(0)
    rejected = np.array([mcnemar_p(only_a, 40 - only_a) <= 0.05 for only_a in range(41)])
    assert 0.02 < rejected[generator.binomial(40, 0.5, NUM_SIMULATIONS)].mean() <= 0.05
    assert rejected[generator.binomial(40, 0.8, NUM_SIMULATIONS)].mean() > 0.9


def test_holms_p_by_hand() -> None:
    """Ordered .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and the last is no less than the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1, 1]
    assert holm([0.02]) == [0.02]


def test_students_p_is_scipys() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 25))
    assert student_p(a - b) == pytest.approx(ttest_rel(a, b).pvalue)
    assert student_p(np.array([0.1])) is None
    assert (student_p(np.zeros(3)), student_p(np.ones(3))) == (1, 0)


def test_the_detectable_difference_is_found_with_80_percent_power() -> None:
    """By its formula for many documents, and by simulation: of a difference half as large, only 29% are found."""
    answers = np.repeat([1.0, -1.0, 0.0], [1000, 1000, 8000])
    assert detectable_difference(answers) == pytest.approx(2.8016 * np.sqrt(0.2 / 10_000), rel=1e-3)
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(NUM_SIMULATIONS, 30))
    true = detectable_difference(np.resize([1.0, -1.0], 30) * np.sqrt(29 / 30))  # a standard deviation of 1
    assert true is not None
    found = {
        factor: np.mean([student_p(differences) <= 0.05 for differences in noise + factor * true])  # pyright: ignore
        for factor in (0.5, 1)
    }
    assert found[1] == pytest.approx(0.8, abs=0.03)
    assert found[0.5] == pytest.approx(0.29, abs=0.04)
    assert detectable_difference(np.zeros(5)) is None
