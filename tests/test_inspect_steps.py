"""The slider of `inspect`: the first step of each token says what the exact selection says at every ρ."""

from dataclasses import replace

import numpy as np
import pytest

from forgetting.errors import UserError
from forgetting.inspection.steps import STEPS, counts_by_step, first_steps
from forgetting.method.selection import Selection, find_thresholds, sequence_means

NUM_TARGETS = np.array([1, 7, 30, 2, 60, 101], dtype=np.int32)


def scores() -> np.ndarray:
    """Scores with many ties, among them 0 and −0."""
    drawn = np.random.default_rng(0).integers(-5, 6, NUM_TARGETS.sum()).astype(np.float32) / 4
    drawn[drawn == 0] *= np.where(np.arange((drawn == 0).sum()) % 2, -1, 1)
    return drawn


def exact(score: np.ndarray, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative mask of every token by the thresholds that training uses."""
    if selection.scope == "example":
        corpus = replace(selection, scope="corpus")
        parts = [exact(part, corpus) for part in np.split(score, np.cumsum(NUM_TARGETS)[:-1])]
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    is_token = selection.granularity == "token"
    ranked = score if is_token else sequence_means(score, NUM_TARGETS)
    positive, negative = find_thresholds(lambda: [ranked], len(ranked), selection).masks(ranked, 0)
    return (positive, negative) if is_token else (positive.repeat(NUM_TARGETS), negative.repeat(NUM_TARGETS))


@pytest.mark.parametrize("forget_fraction", [None, 0.0, 0.1])
@pytest.mark.parametrize(
    "selection", [Selection(), Selection(granularity="sequence"), Selection(scope="example")], ids=str
)
def test_every_step_marks_what_the_exact_selection_marks(selection: Selection, forget_fraction: float | None) -> None:
    score = scores()
    first = first_steps(score, NUM_TARGETS, replace(selection, forget_fraction=forget_fraction))
    for step, rho in enumerate(STEPS):
        if forget_fraction is not None and rho + forget_fraction > 1:
            continue
        positive, negative = exact(score, replace(selection, positive_fraction=rho, forget_fraction=forget_fraction))
        np.testing.assert_array_equal(first.positive <= step, positive, err_msg=f"positive at ρ = {rho}")
        np.testing.assert_array_equal(first.kept > step, negative, err_msg=f"negative at ρ = {rho}")


def test_a_score_that_is_no_number_is_refused() -> None:
    score = scores()
    score[3] = np.nan
    with pytest.raises(UserError):
        first_steps(score, NUM_TARGETS, Selection())


def test_counts_of_a_group_are_its_selected_tokens() -> None:
    score = scores()
    first = first_steps(score, NUM_TARGETS, Selection()).positive
    group = np.arange(len(score)) % 3
    counts = counts_by_step(first, group, 4)
    for step, rho in enumerate(STEPS):
        positive = exact(score, Selection(positive_fraction=rho))[0]
        assert counts[:, step].tolist() == [int(positive[group == number].sum()) for number in range(4)]
