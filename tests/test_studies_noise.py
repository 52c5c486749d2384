"""Detection of known noise, in closed form and against the pairs that the area counts."""

import numpy as np
import pytest

from forgetting.errors import UserError
from forgetting.studies.noise import area_under_curve, detection

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
    assert detected.precision == detected.recall == pytest.approx(2 / 3)
    assert detected.recall_by_kind == {"misleading": 1.0, "random": 1.0, "boilerplate": 0.0}
    assert detected.auc == pytest.approx(pairs_won(score, noise > 0))
    assert detected.measure("recall/random") == 1.0
    with pytest.raises(UserError, match="no noise of the kind 'typo'; there is boilerplate, misleading, random"):
        detected.measure("recall/typo")


def test_what_is_not_defined_is_missing() -> None:
    clean = detection(np.zeros(3, dtype=np.float32), np.zeros(3, np.bool_), np.zeros(3, np.uint8), ())
    assert clean.measure("auc") is clean.measure("precision") is clean.measure("recall") is None
    assert clean.measure("noise_fraction") == 0
