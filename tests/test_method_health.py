"""Selection health: closed forms on a few tokens, whatever the shards, and in memory that does not grow."""

import json
import runpy
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import spearmanr

from forgetting.method.health import (
    FEW_FIRST_TOKENS,
    LOW_CORRELATION,
    Group,
    Health,
    MeanLoss,
    position_bins,
    position_names,
    selection_health,
    spearman,
)
from forgetting.method.store import COLUMNS, ScoreStore, StoredSplit, close_store, shard_ranges, write_shard
from forgetting.runs.selection_health import example_sources

COUNTS = np.array([3, 1, 4, 2])
SCORES = np.array([3, -1, 2, -2, 1, 0, 4, 5, 0.5, -3], dtype=np.float32)
BASE = 10 - SCORES
SOURCES = ["a", "b", "a", "b"]


def stored(folder: Path, base: np.ndarray = BASE, scores: np.ndarray = SCORES, shard_size: int = 3) -> StoredSplit:
    """A store in which the examples of COUNTS have these scores."""
    ranges, offsets = shard_ranges("train", len(COUNTS), shard_size), np.concatenate([[0], np.cumsum(COUNTS)])
    for r in ranges:
        tokens = slice(offsets[r.first], offsets[r.last])
        columns = dict(zip(COLUMNS, (base[tokens], (base - scores)[tokens]), strict=True))
        write_shard(folder, r, {}, COUNTS[r.first : r.last], columns)
    close_store(folder, {}, ranges, {})
    return ScoreStore.open(folder).split("train")


def health(train: StoredSplit, **options: object) -> Health:
    return selection_health(train, train, lambda first, last: SOURCES[first:last], **options)


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_figures_of_ten_tokens(tmp_path, shard_size):
    made = health(stored(tmp_path, shard_size=shard_size))
    assert made.positive_score_fraction == 0.6  # 0 is not above 0
    assert (made.train.num_tokens, made.train.base, made.train.reference) == (
        10,
        pytest.approx(9.05),
        pytest.approx(8.1),
    )
    assert made.train.reduction == pytest.approx(SCORES.mean())
    assert made.held_out == made.train
    assert made.base_correlation == pytest.approx(-1)  # the base's loss is 10 − Q
    # The three lowest of ten, −3, −2 and −1, are negative.
    assert [(g.name, g.num_tokens, g.num_negative) for g in made.by_source] == [("a", 7, 1), ("b", 3, 2)]
    assert [(g.name, g.num_tokens, g.num_negative) for g in made.by_position] == [("1", 4, 1), ("2–4", 6, 2)]
    assert made.scalars() == pytest.approx({
        "health/nll_reduction_train": 0.95, "health/nll_reduction": 0.95, "health/positive_score_fraction": 0.6,
        "health/base_correlation": -1.0, "health/negative_fraction/source/a": 1 / 7,
        "health/negative_fraction/source/b": 2 / 3, "health/negative_fraction/position/1": 1 / 4,
        "health/negative_fraction/position/2–4": 1 / 3,
    })  # fmt: skip


def test_an_examples_source_is_that_of_its_row():
    split = Dataset.from_dict({"messages": ["m"] * 5, "source": ["a", "b", "c", "d", "e"]})
    sources = example_sources(split, np.array([0, 2, 3, 4]))  # row 1 has no target, so it is no example
    assert [list(sources(first, last)) for first, last in ((0, 2), (2, 4))] == [["a", "c"], ["d", "e"]]


def test_another_fraction_makes_other_tokens_negative(tmp_path):
    half = health(stored(tmp_path), positive_fraction=0.5)  # 0 and 0.5 as well
    assert [(g.name, g.num_negative) for g in half.by_source] == [("a", 2), ("b", 3)]


def test_without_held_out_examples_nothing_is_said_of_them(tmp_path):
    made = selection_health(stored(tmp_path), None, lambda first, last: SOURCES[first:last])
    assert "health/nll_reduction" not in made.scalars()
    assert "D_val" not in "\n".join(made.lines())
    assert "D_val" in "\n".join(health(stored(tmp_path / "other")).lines())


def test_a_reference_that_lowers_no_held_out_nll_is_named(tmp_path):
    base = 10 + SCORES  # Q rises with the base's loss, as it does where all is well
    equal = health(stored(tmp_path / "equal", base, SCORES * 0))
    assert "did not lower" in equal.warnings[0]
    higher = health(stored(tmp_path / "higher", base, SCORES - 1))
    (warning,) = higher.warnings
    assert "did not lower the nll of D_val (10.9500, now 11.0000)" in warning
    assert f"  warning: {warning}" in higher.lines()
    assert not health(stored(tmp_path / "lower", base, SCORES)).warnings  # the control
    unknown = selection_health(stored(tmp_path / "train", base, SCORES - 1), None, lambda a, b: SOURCES[a:b])
    assert "of D_train" in unknown.warnings[0]


@pytest.mark.parametrize(("correlation", "warns"), [(0.025, True), (0.027, False), (None, False)])
def test_a_score_that_hardly_follows_the_base_is_named(correlation, warns):
    losses, groups = MeanLoss(1000, 2.0, 1.0), (Group("1", 100, 30),)
    made = Health(0.7, losses, None, 0.6, correlation, by_source=groups, by_position=groups)
    assert [w.startswith("Q hardly follows nll_base") for w in made.warnings] == [True] * warns


@pytest.mark.parametrize(("first", "warns"), [(12, True), (13, False)])
def test_first_tokens_that_are_hardly_ever_negative_are_named(first, warns):
    losses = MeanLoss(1000, 2.0, 1.0)
    groups = Group("1", 100, first), Group("2–4", 900, 300 - first)
    made = Health(0.7, losses, None, 0.6, 0.3, by_source=groups, by_position=groups)
    assert len(made.warnings) == warns
    assert all(f"first tokens of responses {first}.0% are negative, of all tokens 30.0%" in w for w in made.warnings)


def test_two_references_agree_whatever_their_shards(tmp_path):
    train = stored(tmp_path / "train", shard_size=3)
    others = {
        "the same": stored(tmp_path / "a", scores=2 * SCORES, shard_size=1),
        "shorter shards": stored(tmp_path / "b", scores=SCORES, shard_size=2),
        "one shard": stored(tmp_path / "c", scores=SCORES, shard_size=100),
        "opposite": stored(tmp_path / "d", scores=-SCORES, shard_size=2),
        "constant": stored(tmp_path / "e", base=BASE * 0, scores=SCORES * 0),
    }
    agreement = health(train, others=others).agreement
    assert agreement == {
        "the same": pytest.approx(1), "shorter shards": pytest.approx(1), "one shard": pytest.approx(1),
        "opposite": pytest.approx(-1), "constant": None,
    }  # fmt: skip
    assert "health/agreement/constant" not in health(train, others=others).scalars()


def chunked(a: np.ndarray, b: np.ndarray, size: int = 1000) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for start in range(0, len(a), size):
        yield a[start : start + size], b[start : start + size]


def test_spearman_is_scipys_with_ties():
    generator = np.random.default_rng(0)
    a = generator.integers(-20, 20, 5000).astype(np.float32)
    b = (a + generator.integers(-15, 15, 5000)).astype(np.float32)
    assert spearman(lambda: chunked(a, b)) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_spearman_of_losses_is_scipys_within_a_thousandth():
    generator = np.random.default_rng(0)
    base = generator.exponential(2.0, 20_000).astype(np.float32)
    score = (base * generator.normal(0.3, 0.5, 20_000)).astype(np.float32)
    assert spearman(lambda: chunked(score, base)) == pytest.approx(spearmanr(score, base).statistic, abs=1e-3)
    assert abs(np.corrcoef(score, base)[0, 1] - spearmanr(score, base).statistic) > 0.01  # the control


def test_spearman_needs_no_more_memory_for_more_tokens():
    generator = np.random.default_rng(0)
    chunk = generator.normal(size=(2, 10_000)).astype(np.float32)

    def peak(repeats: int) -> int:
        tracemalloc.start()
        spearman(lambda: ((chunk[0], chunk[1]) for _ in range(repeats)))
        try:
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(50) < 1.1 * peak(2)


def test_each_token_lies_in_the_range_of_its_place():
    counts = np.array([1, 300, 5])
    places = [place for count in counts for place in range(1, count + 1)]
    names = [position_names()[i] for i in position_bins(counts)]
    expected = {1: "1", 2: "2–4", 4: "2–4", 5: "5–16", 16: "5–16", 17: "17–64", 256: "65–256", 257: "257 and on"}
    assert all(name == expected[place] for place, name in zip(places, names, strict=True) if place in expected)
    assert len(names) == counts.sum()


def test_the_page_shows_the_study_as_its_results_have_it():
    repository = Path(__file__).parents[1]
    study = runpy.run_path(str(repository / "experiments/health/table.py"))
    records = json.loads((repository / "docs/results/health.json").read_text())
    assert study["tables"](records) in (repository / "docs/health.md").read_text()
    choosing = [record for record in records if record["seed"] in study["CHOOSING"]]
    assert round(study["LOW_CORRELATION"].chosen(choosing), 3) == LOW_CORRELATION
    assert round(study["FIRST_TOKENS"].chosen(choosing) / study["EXPECTED"], 2) == FEW_FIRST_TOKENS
