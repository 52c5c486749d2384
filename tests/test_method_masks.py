"""The masks that training sees are the selection, example by example."""

import pickle

import numpy as np
import pytest

from forgetting.errors import UserError
from forgetting.method.masks import AllPositive, ByThreshold, ScoredSplit, Selected
from forgetting.method.scores import LossReduction, Oracle, Random, Score, StoredTokens
from forgetting.method.selection import Selection
from forgetting.method.store import ScoreStore, close_store, shard_ranges, write_shard

COUNTS = np.random.default_rng(1).integers(1, 9, 60)


@pytest.fixture
def scored(tmp_path) -> ScoredSplit:
    generator = np.random.default_rng(0)
    base = np.round(generator.normal(size=COUNTS.sum()), 1).astype(np.float32)  # with ties
    reference = np.round(generator.normal(size=COUNTS.sum()), 1).astype(np.float32)
    ranges, offsets = shard_ranges("train", len(COUNTS), 7), np.concatenate([[0], np.cumsum(COUNTS)])
    for r in ranges:
        tokens = slice(offsets[r.first], offsets[r.last])
        columns = {"nll_base": base[tokens], "nll_reference": reference[tokens]}
        write_shard(tmp_path, r, {}, COUNTS[r.first : r.last], columns)
    close_store(tmp_path, {}, ranges, {})
    return ScoredSplit(ScoreStore.open(tmp_path).split("train"), LossReduction())


def all_scores(scored: ScoredSplit) -> np.ndarray:
    return np.concatenate(list(scored.chunks()))


def all_masks(scored: ScoredSplit, selection: Selection) -> list[np.ndarray]:
    masks = Selected(scored, selection).masks(scored)
    return [np.concatenate(side) for side in zip(*(masks(i) for i in range(len(COUNTS))), strict=True)]


@pytest.mark.parametrize("rho", [0.05, 0.5, 0.7, 0.93])
def test_the_masks_of_all_examples_are_the_top_of_a_stable_sort(scored, rho):
    positive, negative = all_masks(scored, Selection(rho))
    q = scored.stored.column("nll_base") - scored.stored.column("nll_reference")
    expected = np.zeros(len(q), dtype=bool)
    expected[np.argsort(-q, kind="stable")[: round(rho * len(q))]] = True
    np.testing.assert_array_equal(positive, expected)
    np.testing.assert_array_equal(negative, ~expected)


@pytest.mark.parametrize("rho", [0.05, 0.5, 0.7, 0.93])
def test_by_sequence_all_tokens_of_an_example_have_one_label(scored, rho):
    masks = Selected(scored, Selection(rho, "sequence")).masks(scored)
    labels = [set(masks(i)[0].tolist()) for i in range(len(COUNTS))]
    assert all(len(label) == 1 for label in labels)
    assert sum(True in label for label in labels) == round(rho * len(COUNTS))
    means = [part.mean() for part in np.split(all_scores(scored).astype(np.float64), np.cumsum(COUNTS)[:-1])]
    selected = {i for i, label in enumerate(labels) if True in label}
    assert min(means[i] for i in selected) >= max(means[i] for i in set(range(len(COUNTS))) - selected)


@pytest.mark.parametrize("rho", [0.2, 0.5, 0.7])
@pytest.mark.parametrize("forget", [None, 0.1])
def test_within_an_example_its_own_top_fraction_is_positive(scored, rho, forget):
    selection = Selection(rho, scope="example", forget_fraction=forget)
    selected = Selected(scored, selection)
    masks, counts = selected.masks(scored), np.zeros(2, int)
    for i, (count, q) in enumerate(zip(COUNTS, np.split(all_scores(scored), np.cumsum(COUNTS)[:-1]), strict=True)):
        order = np.argsort(-q, kind="stable")
        positive, negative = masks(i)
        assert set(np.flatnonzero(positive)) == set(order[: round(rho * count)])
        num_negative = count - round(rho * count) if forget is None else round(forget * count)
        assert set(np.flatnonzero(negative)) == set(order[count - num_negative :])
        counts += positive.sum(), negative.sum()
    assert (selected.num_positive, selected.num_negative) == tuple(counts)


def test_a_token_after_the_corpus_that_equals_the_threshold_is_not_selected(scored):
    thresholds = Selected(scored, Selection(0.5)).thresholds
    assert thresholds is not None
    here = ByThreshold(scored, thresholds, "token")
    after = ByThreshold(scored, thresholds, "token", len(scored.stored), scored.stored.num_tokens)
    ties = [scored.example(i)[1] == np.float32(thresholds.positive.value) for i in range(len(COUNTS))]
    differing = [here(i)[0] != after(i)[0] for i in range(len(COUNTS))]
    assert any(d.any() for d in differing)
    assert all((tie | ~d).all() for tie, d in zip(ties, differing, strict=True))


def test_all_tokens_are_positive_without_scores():
    positive, negative = AllPositive(np.array([2, 5]))(1)
    assert positive.tolist() == [True] * 5
    assert not negative.any()


def test_a_worker_process_is_sent_the_places_of_the_scores_and_not_the_scores(scored):
    masks = Selected(scored, Selection(0.7)).masks(scored)
    sent = pickle.dumps(masks)
    received = pickle.loads(sent)  # noqa: S301 - what the line before made
    for i in range(len(COUNTS)):
        np.testing.assert_array_equal(received(i), masks(i))
    assert scored.stored.column("nll_base").tobytes()[:32] not in sent


@pytest.mark.parametrize(("selection", "message"), [
    (Selection(0.001), r"\(ρ\) 0.001 none of the 2\d\d response tokens"),
    (Selection(0.001, scope="example"), r"\(ρ\) 0.001 none of the 2\d\d response tokens"),
    (Selection(0.005, "sequence", forget_fraction=0.5), "none of the 60 sequences"),
    (Selection(None, threshold=9.0), r"data.threshold 9.0 none of the 2\d\d .*Lower"),
])  # fmt: skip
def test_a_selection_without_positive_tokens_is_refused_since_it_would_only_unlearn(scored, selection, message):
    with pytest.raises(UserError, match=message):
        Selected(scored, selection)


def test_random_scores_are_uniform_follow_their_seed_and_select_at_equal_rho(scored):
    split = scored.stored
    first, again, second = (all_scores(ScoredSplit(split, Random(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(set(first)) == len(first)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
    assert abs(np.corrcoef(first, all_scores(scored))[0, 1]) < 0.2
    assert all_masks(ScoredSplit(split, Random(0)), Selection(0.7))[0].sum() == round(0.7 * len(first))
    many = Random(3)(StoredTokens("train", 0, np.array([100_000]), {}))
    assert 0 <= many.min() < many.max() < 1
    assert np.abs(np.histogram(many, 20, (0, 1))[0] / 5000 - 1).max() < 0.06
    elsewhere = Random(3)(StoredTokens("validation", 0, np.array([100_000]), {}))
    assert (elsewhere != many).mean() > 0.99


def test_the_oracle_puts_every_clean_token_above_every_noisy_one(scored, tmp_path):
    noise = np.random.default_rng(2).integers(0, 3, COUNTS.sum()).astype(np.uint8)
    split = ScoreStore.open(tmp_path).split("train", {"noise": noise})
    scores = all_scores(ScoredSplit(split, Oracle()))
    assert scores[noise == 0].min() >= 1 > scores[noise != 0].max()
    with pytest.raises(UserError, match=r"Oracle reads noise; the store has nll_base, nll_reference. No source"):
        ScoredSplit(scored.stored, Oracle())


class Constant(Score):
    def __init__(self, value):
        self.value = value

    def __call__(self, tokens):
        return self.value


class Standardized(Score):
    """Looks at more than the example: alone it is another number."""

    columns = ("nll_base",)

    def __call__(self, tokens):
        return tokens["nll_base"] - tokens["nll_base"].mean()


@pytest.mark.parametrize(("score", "message"), [
    (Constant(np.zeros(3, np.float32)), r"gave an array of shape \(3,\)"),
    (Constant([[1.0]]), r"gave an array of shape \(1, 1\)"),
    (Standardized(), "other values alone than among others"),
])  # fmt: skip
def test_a_score_that_is_none_is_refused(scored, score, message):
    with pytest.raises(UserError, match=message):
        Selected(ScoredSplit(scored.stored, score), Selection(0.5))


def test_the_hash_of_scores_is_that_of_their_values(scored):
    by_code = ScoredSplit(scored.stored, type("Other", (LossReduction,), {})())
    changed = ScoredSplit(scored.stored, type("Changed", (LossReduction,), {"__call__": lambda _, t: -t["nll_base"]})())
    assert scored.hash == by_code.hash != changed.hash
