"""What recurs from response to response, against a count by hand; and the score that puts it below everything else."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from forgetting.corpus.tokens import TokenizedSplit
from forgetting.errors import UserError
from forgetting.method.recurrence import LENGTH, recurrence
from forgetting.method.scores import LossReduction, NoBoilerplate, PromptFit, StoredTokens

Responses = Sequence[Sequence[int]]


def split(folder: Path, examples: Sequence[Responses]) -> TokenizedSplit:
    """A split of examples of one or more responses, each after a prompt of three tokens that all share."""
    folder.mkdir()
    ids = [[token for response in responses for token in (9, 9, 9, *response)] for responses in examples]
    masks = [[n >= 3 for response in responses for n in range(3 + len(response))] for responses in examples]
    arrays = {
        "input_ids": np.array([token for example in ids for token in example], np.int32),
        "response_mask": np.array([is_target for mask in masks for is_target in mask]),
        "offsets": np.cumsum([0, *map(len, ids)]),
        "num_targets": np.array([sum(mask) for mask in masks], np.int32),
        "rows": np.arange(len(ids)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return TokenizedSplit(folder, "hash")


def by_hand(responses: Responses, counted: Responses) -> list[float]:
    distinct = {tuple(response) for response in counted}
    holds: dict[tuple[int, ...], set[tuple[int, ...]]] = defaultdict(set)
    for response in distinct:
        for first in range(len(response) - LENGTH + 1):
            holds[response[first : first + LENGTH]].add(response)
    found: list[float] = []
    for response in map(tuple, responses):
        for place in range(len(response)):
            firsts = range(max(place - LENGTH + 1, 0), min(place, len(response) - LENGTH) + 1)
            others = [len(holds[response[first : first + LENGTH]] - {response}) for first in firsts]
            found.append(max(others, default=0) / len(distinct))
    return found


@pytest.mark.parametrize("vocabulary", [2, 3, 9])
def test_recurrence_is_the_share_of_other_responses(tmp_path: Path, vocabulary: int) -> None:
    draw = np.random.default_rng(vocabulary)
    lengths = (*draw.integers(1, 25, 40), LENGTH - 1, LENGTH, LENGTH)
    responses = [draw.integers(0, vocabulary, length).tolist() for length in lengths]
    others = [draw.integers(0, vocabulary, length).tolist() for length in draw.integers(1, 25, 10)]
    others.append(responses[0])  # equal to one of D_train, so it does not count as another
    dialogues = [responses[:3], *([response] for response in responses[3:])]
    train, held_out = split(tmp_path / "train", dialogues), split(tmp_path / "validation", [others])
    expected = by_hand(responses, responses)
    assert np.mean(np.array(expected) > 0) > 0
    np.testing.assert_allclose(recurrence(train, train), expected, rtol=1e-6)
    np.testing.assert_allclose(recurrence(held_out, train), by_hand(others, responses), rtol=1e-6)


def test_a_sequence_ends_with_its_response_and_counts_once_in_it(tmp_path: Path) -> None:
    phrase = [1, 2, 3, 4, 5]
    # Twice in one response, and across the border of two: neither is another response that says it.
    train = split(tmp_path / "train", [[phrase + phrase, [1, 2, 3]], [[4, 5, 6, 7, 8]]])
    assert recurrence(train, train).tolist() == [0.0] * 18
    train = split(tmp_path / "said", [[phrase + phrase, [0, *phrase]], [[4, 5, 6, 7, 8]]])
    np.testing.assert_allclose(recurrence(train, train), [*[1 / 3] * 10, 0, *[1 / 3] * 5, *[0] * 5], rtol=1e-6)


def test_a_reply_that_branches_of_a_conversation_share_does_not_recur(tmp_path: Path) -> None:
    shared = [1, 2, 3, 4, 5, 6]
    train = split(tmp_path / "train", [[shared, [7, 1, 2]], [shared, [8, 3, 2, 4, 4, 1]], [shared]])
    assert recurrence(train, train).tolist() == [0.0] * 27
    # The control: with one more token it is another response.
    train = split(tmp_path / "other", [[shared, [7, 1, 2]], [shared, [8, 3, 2, 4, 4, 1]], [[*shared, 0]]])
    np.testing.assert_allclose(recurrence(train, train)[:6], [1 / 4] * 6, rtol=1e-6)


def test_responses_too_short_for_a_sequence_say_nothing_alike(tmp_path: Path) -> None:
    train = split(tmp_path / "train", [[[1, 2]], [[1, 3]], [[1, 2]]])
    assert recurrence(train, train).tolist() == [0.0] * 6


def test_no_boilerplate_takes_a_penalty_from_what_recurs_and_leaves_the_rest() -> None:
    columns = {"nll_base": [3.0, 1.0, 2.0], "nll_reference": [1.0, 1.0, 4.0], "recurrence": [0.0, 0.25, 0.01]}
    tokens = StoredTokens("train", 0, np.array([3]), {k: np.array(v, np.float32) for k, v in columns.items()})
    assert NoBoilerplate(LossReduction(), share=0.2, penalty=5.0)(tokens).tolist() == [2.0, -5.0, -2.0]
    assert NoBoilerplate(LossReduction(), share=0.3)(tokens).tolist() == LossReduction()(tokens).tolist()
    assert NoBoilerplate(PromptFit()).columns == ("nll_base", "nll_promptless", "recurrence")


@pytest.mark.parametrize("settings", [{"share": 0.0}, {"share": 1.5}, {"penalty": 0.0}, {"penalty": float("inf")}])
def test_settings_that_say_nothing_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"data\.score has the share"):
        NoBoilerplate(LossReduction(), **settings)
