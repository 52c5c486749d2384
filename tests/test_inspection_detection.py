"""Detection of known noise, in closed form and against the pairs that the area counts."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from forgetting.errors import UserError
from forgetting.inspection.detection import area_under_curve, detection

KINDS = ("boilerplate", "misleading", "random")


def pairs_won(score: np.ndarray, is_noise: np.ndarray) -> float:
    clean, noise = score[~is_noise][:, None], score[is_noise][None, :]
    return float(((clean > noise) + 0.5 * (clean == noise)).mean())


@pytest.mark.parametrize("values", [5, 1000])
def test_the_area_is_the_fraction_of_pairs_won_with_ties_as_half(values: int) -> None:
    random = np.random.default_rng(0)
    score = random.integers(0, values, 200).astype(np.float32)
    is_noise = random.random(200) < 0.3
    assert area_under_curve(score, is_noise) == pytest.approx(pairs_won(score, is_noise))


def test_area_of_perfect_reversed_and_constant_scores() -> None:
    is_noise = np.array([True, True, False, False, False])
    assert area_under_curve(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), is_noise) == 1.0
    assert area_under_curve(np.array([4.0, 3.0, 2.0, 1.0, 0.0]), is_noise) == 0.0
    assert area_under_curve(np.zeros(5), is_noise) == 0.5
    assert np.isnan(area_under_curve(np.zeros(2), np.array([True, True])))


def test_detection_in_closed_form() -> None:
    score = np.array([2.0, -1.0, 1.0, -2.0, 3.0, 0.5, 4.0, -3.0, 5.0, 6.0], dtype=np.float32)
    noise = np.array([0, 2, 0, 3, 0, 1, 0, 0, 0, 0], dtype=np.uint8)
    detected = detection(score, score < 0, noise, KINDS)  # −3, −2 and −1 are negative
    assert (detected.num_tokens, detected.noise_fraction) == (10, 0.3)
    assert detected.positive_score_fraction == pytest.approx(0.7)
    assert detected.noise.precision.value == detected.noise.recall.value == pytest.approx(2 / 3)
    recall = {kind: of_kind.recall.value for kind, of_kind in detected.kinds.items()}
    assert recall == {"misleading": 1.0, "random": 1.0, "boilerplate": 0.0}
    assert detected.noise.auc.value == pytest.approx(pairs_won(score, noise > 0))
    # From the lowest score up: clean, random, misleading, boilerplate.
    assert detected.noise.average_precision.value == pytest.approx((1 / 2 + 2 / 3 + 3 / 4) / 3)
    assert detected.measure("average_precision/misleading") == pytest.approx(1 / 2)  # random left out
    assert detected.measure("precision/misleading") == pytest.approx(1 / 2)
    assert detected.measure("recall/random") == 1.0
    with pytest.raises(UserError, match="no noise of the kind 'typo'; there is boilerplate, misleading, random"):
        detected.measure("recall/typo")
    with pytest.raises(UserError, match="no noise of the kind ''"):
        detected.measure("recall/")


def test_average_precision_is_scikit_learns() -> None:
    random = np.random.default_rng(1)
    score = random.integers(0, 50, 500).astype(np.float64)
    is_noise = random.random(500) < 0.2
    made = detection(score, score < 10, is_noise.astype(np.uint8), ("x",))
    assert made.noise.average_precision.value == pytest.approx(average_precision_score(is_noise, -score))
    assert made.kinds["x"] == made.noise


def test_intervals_are_those_of_drawing_examples_anew() -> None:
    """Against the plain bootstrap, which copies the tokens of the examples it draws."""
    random = np.random.default_rng(2)
    num_targets = random.integers(1, 9, 40)
    noise = (random.random(num_targets.sum()) < 0.3).astype(np.uint8)
    score = random.normal(size=len(noise)) - 0.5 * noise
    negative = score < -0.5
    made = detection(score, negative, noise, ("x",), num_targets, resamples=400, seed=5)
    starts = np.concatenate([[0], num_targets.cumsum()])
    generator, areas, recalls = np.random.default_rng(5), [], []
    for _ in range(400):
        counts = generator.multinomial(40, np.full(40, 1 / 40))
        tokens = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in np.repeat(np.arange(40), counts)])
        areas.append(pairs_won(score[tokens], noise[tokens] > 0))
        recalls.append(negative[tokens][noise[tokens] > 0].mean())
    assert (made.noise.auc.low, made.noise.auc.high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))
    assert (made.noise.recall.low, made.noise.recall.high) == pytest.approx(tuple(np.quantile(recalls, [0.025, 0.975])))
    assert detection(score, negative, noise, ("x",), num_targets).noise.auc.low is None


def test_the_interval_of_a_kind_is_of_that_kind_in_the_same_draws() -> None:
    random = np.random.default_rng(4)
    num_targets = random.integers(1, 9, 40)
    noise = random.integers(0, 3, num_targets.sum()).astype(np.uint8)
    score = random.normal(size=len(noise)) - 0.5 * noise
    made = detection(score, score < 0, noise, ("x", "y"), num_targets, resamples=200, seed=5)
    starts = np.concatenate([[0], num_targets.cumsum()])
    generator, areas = np.random.default_rng(5), []
    for _ in range(200):
        counts = generator.multinomial(40, np.full(40, 1 / 40))
        tokens = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in np.repeat(np.arange(40), counts)])
        tokens = tokens[noise[tokens] != 1]
        areas.append(pairs_won(score[tokens], noise[tokens] == 2))
    found = made.kinds["y"].auc
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))


def test_random_scores_have_one_half_in_their_interval_and_known_ones_are_perfect() -> None:
    random = np.random.default_rng(3)
    num_targets = random.integers(5, 40, 200)
    noise = random.integers(0, 3, num_targets.sum()).astype(np.uint8)
    for score, auc in ((random.random(len(noise)), 0.5), ((noise == 0) + random.random(len(noise)), 1.0)):
        made = detection(score, score < np.quantile(score, 0.6), noise, ("a", "b"), num_targets, resamples=200)
        for detected in (made.noise, *made.kinds.values()):
            assert detected.auc.low is not None
            assert detected.auc.high is not None
            assert detected.auc.low <= auc <= detected.auc.high
            assert detected.auc.high - detected.auc.low < 0.1


def test_what_is_not_defined_is_missing() -> None:
    clean = detection(np.zeros(3, dtype=np.float32), np.zeros(3, np.bool_), np.zeros(3, np.uint8), ())
    assert clean.measure("auc") is clean.measure("precision") is clean.measure("recall") is None
    assert clean.measure("noise_fraction") == 0
