"""Paired differences over repetitions: closed form, coverage, and a control that the interval can fail."""

import math

import numpy as np
import pytest

from forgetting.studies.pairs import paired_difference


def values(numbers: list[float]) -> dict[str, float]:
    return {f"seed-{n}": number for n, number in enumerate(numbers)}


def test_the_interval_in_closed_form() -> None:
    difference = paired_difference(values([40.0, 50.0, 33.0]), values([38.0, 51.0, 28.0]))  # +2, −1, +5
    assert difference is not None
    half = 4.302652729911275 * 3 / math.sqrt(3)  # t(0.975, 2) · sd / √n
    assert difference.difference == pytest.approx(2)
    assert (difference.low, difference.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    assert (difference.num_positive, difference.num_pairs) == (2, 3)


def test_only_shared_repetitions_are_paired() -> None:
    difference = paired_difference({"a": 1.0, "b": 5.0}, {"b": 3.0, "c": 0.0})
    assert difference is not None
    assert (difference.difference, difference.low, difference.num_pairs) == (2.0, None, 1)
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None


def misses(num_pairs: int) -> float:
    """How often the 95 % interval of two rows misses their true difference, 1, where repetitions differ by 20."""
    draw = np.random.default_rng(0)
    missed, trials = 0, 2000
    for _ in range(trials):
        worlds = draw.normal(0, 20, num_pairs)
        first = worlds + draw.normal(1, 1, num_pairs)
        second = worlds + draw.normal(0, 1, num_pairs)
        found = paired_difference(values(list(first)), values(list(second)))
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        missed += not found.low <= 1 <= found.high
    return missed / trials


def test_the_interval_covers_as_often_as_it_says() -> None:
    for num_pairs in (3, 10):
        assert misses(num_pairs) == pytest.approx(0.05, abs=0.015)


def test_two_standard_errors_would_not_cover() -> None:
    """The control: the usual ± 2 standard errors misses far more often with three pairs."""
    draw = np.random.default_rng(0)
    samples = draw.normal(1, 1, (2000, 3))
    errors = samples.std(axis=1, ddof=1) / math.sqrt(3)
    assert (np.abs(samples.mean(axis=1) - 1) > 1.96 * errors).mean() > 0.12
