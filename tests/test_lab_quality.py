from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.prepare import prepare_corpus
from forgetting.corpus.tokens import tokenize_corpus
from forgetting.errors import UserError
from forgetting.lab.language import build_language
from forgetting.lab.noise import Kind
from forgetting.lab.pretraining import word_tokenizer
from forgetting.lab.quality import KINDS, area_under_curve, detection, known_noise
from forgetting.lab.sources import SOURCES, draw_sources, write_rows
from forgetting.method.store import ScoreStore, ShardRange, close_store, write_shard

CLEAN, MISLEADING, RANDOM, BOILERPLATE = range(4)


def pairs_won(score: np.ndarray, is_noise: np.ndarray) -> float:
    """The area by its definition."""
    clean, noisy = score[~is_noise][:, None], score[is_noise][None, :]
    return float(((clean > noisy) + 0.5 * (clean == noisy)).mean())


@pytest.mark.parametrize("values", [3, 1000])
def test_area_is_the_share_of_pairs_won_with_ties_as_half(values: int):
    random = np.random.default_rng(0)
    score = random.integers(0, values, 200).astype(np.float32)
    is_noise = random.random(200) < 0.3
    assert area_under_curve(score, is_noise) == pytest.approx(pairs_won(score, is_noise))


def test_area_of_perfect_reversed_and_constant_scores():
    is_noise = np.array([True, True, False, False, False])
    assert area_under_curve(np.array([0.0, 1.0, 2.0, 3.0, 4.0]), is_noise) == 1.0
    assert area_under_curve(np.array([4.0, 3.0, 2.0, 1.0, 0.0]), is_noise) == 0.0
    assert area_under_curve(np.zeros(5), is_noise) == 0.5
    assert np.isnan(area_under_curve(np.zeros(2), np.array([True, True])))


def made_store(folder: Path, q: np.ndarray) -> ScoreStore:
    """A store of two examples whose Q is `q`."""
    shard = ShardRange("train", 0, 0, 2)
    reference = np.ones_like(q)
    write_shard(folder, shard, {}, np.array([4, len(q) - 4]), (q + reference).astype(np.float32), reference)
    close_store(folder, {}, [shard], {})
    return ScoreStore.open(folder)


def test_detection_in_closed_form(tmp_path: Path):
    q = np.array([2.0, -1.0, 1.0, -2.0, 3.0, 0.5, 4.0, -3.0, 5.0, 6.0], dtype=np.float32)
    kinds = np.array([CLEAN, MISLEADING, CLEAN, RANDOM, CLEAN, BOILERPLATE, CLEAN, CLEAN, CLEAN, CLEAN])
    found = detection(made_store(tmp_path, q), kinds, 0.7)  # the three lowest are negative: −3, −2, −1
    assert (found.num_tokens, found.noise_fraction) == (10, 0.3)
    assert found.positive_quality_fraction == pytest.approx(0.7)
    assert found.precision == pytest.approx(2 / 3)
    assert found.recall == pytest.approx(2 / 3)
    assert found.recall_by_kind == {"misleading": 1.0, "random": 1.0, "boilerplate": 0.0}
    assert found.auc == pytest.approx(pairs_won(q, kinds > 0))


def test_a_store_of_other_tokens_is_refused(tmp_path: Path):
    store = made_store(tmp_path, np.zeros(10, dtype=np.float32))
    with pytest.raises(UserError, match="scores 10 tokens, the corpus has 9"):
        detection(store, np.zeros(9, dtype=np.int64), 0.7)


@pytest.fixture
def written(tmp_path: Path) -> SimpleNamespace:
    """A world's sources, and the corpus that the pipeline makes of them."""
    language = build_language(0)
    folder = tmp_path / "sources"
    folder.mkdir()
    rows = draw_sources(0, language, 120)
    for name, of_source in rows.items():
        write_rows(folder / f"{name}.jsonl", of_source)
    sources = {
        n: Source(str(folder / f"{n}.jsonl"), prompt="{prompt}", response="{response}", noise="noise") for n in SOURCES
    }
    corpus = prepare_corpus(CorpusConfig(sources, 60, 30, 10), tmp_path / "corpora")
    tokens = tokenize_corpus(corpus, word_tokenizer(language), "plain", 64)
    return SimpleNamespace(folder=folder, rows=rows, language=language, tokens=tokens)


def test_the_noise_follows_its_words_through_the_pipeline(written: SimpleNamespace):
    split = written.tokens.split("train")
    kinds = known_noise(written.tokens, "train")
    assert len(kinds) == split.num_targets.sum()
    rows = [row for of_source in written.rows.values() for row in of_source]
    by_text = {(row.prompt, row.response): row.noise for row in reversed(rows)}  # of equal rows the first
    start = 0
    for i in range(len(split)):
        ids, mask = split.input_ids(i), split.response_mask(i)
        words = [written.language.vocabulary[number] for number in ids[mask]]
        prompt = " ".join(written.language.vocabulary[number] for number in ids[~mask][1:])
        assert words[-1] == "<eos>"
        noise = [KINDS[number] for number in kinds[start : start + len(words)]]
        assert noise == [*by_text[prompt, " ".join(words[:-1])], Kind.CLEAN]
        start += len(words)


def test_a_corpus_without_known_noise_is_refused(written: SimpleNamespace, tmp_path: Path):
    source = Source(str(written.folder / "flan.jsonl"), prompt="{prompt}", response="{response}")
    corpus = prepare_corpus(CorpusConfig({"flan": source}, 10, 0, 0), tmp_path / "corpora")
    with pytest.raises(UserError, match="names a column `noise`"):
        known_noise(tokenize_corpus(corpus, word_tokenizer(written.language), "plain", 64), "train")
