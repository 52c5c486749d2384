"""Shards: complete or absent, their maker's own, and in corpus order whatever their size; columns by name."""

import json
from pathlib import Path

import numpy as np
import pytest

from forgetting.artifacts import write_manifest
from forgetting.errors import UserError
from forgetting.method.store import COLUMNS, ScoreStore, close_store, has_shard, shard_ranges, write_shard

IDENTITY = {"corpus": "c", "adapter": "a"}
COUNTS = np.array([3, 1, 4, 1, 5, 9, 2])


def scores(split: str):
    generator = np.random.default_rng(len(split))
    return [generator.normal(size=COUNTS.sum()).astype(np.float32) for _ in range(2)]


def make(folder: Path, shard_size: int = 3) -> ScoreStore:
    ranges = [r for split in ("train", "validation") for r in shard_ranges(split, len(COUNTS), shard_size)]
    offsets = np.concatenate([[0], np.cumsum(COUNTS)])
    for r in ranges:
        tokens = slice(offsets[r.first], offsets[r.last])
        columns = {name: values[tokens] for name, values in zip(COLUMNS, scores(r.split), strict=True)}
        write_shard(folder, r, IDENTITY, COUNTS[r.first : r.last], columns)
    close_store(folder, IDENTITY, ranges, {})
    return ScoreStore.open(folder)


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_what_was_written_is_read_in_corpus_order(tmp_path, shard_size):
    store = make(tmp_path, shard_size)
    base, reference = scores("train")
    split = store.split("train")
    assert (len(split), split.num_tokens) == (len(COUNTS), COUNTS.sum())
    assert store.columns == split.columns == ("nll_base", "nll_reference")
    np.testing.assert_array_equal(split.column("nll_base"), base)
    np.testing.assert_array_equal(split.column("nll_reference"), reference)
    np.testing.assert_array_equal(split.num_targets(), COUNTS)
    parts = np.split(reference, np.cumsum(COUNTS)[:-1])
    for i, part in enumerate(parts):
        tokens = split.example(i)
        assert (tokens.first, len(tokens)) == (COUNTS[:i].sum(), COUNTS[i])
        np.testing.assert_array_equal(tokens["nll_reference"], part)


@pytest.mark.parametrize("shard_size", [1, 3, 100])
def test_further_columns_are_read_like_stored_ones(tmp_path, shard_size):
    store, noise = make(tmp_path, shard_size), np.arange(COUNTS.sum(), dtype=np.uint8)
    split = store.split("train", {"noise": noise})
    assert split.columns == ("nll_base", "nll_reference", "noise")
    np.testing.assert_array_equal(split.column("noise"), noise)
    parts = np.split(noise, np.cumsum(COUNTS)[:-1])
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(split.example(i)["noise"], part)
    with pytest.raises(UserError, match="noise has 3 values, the store 25 tokens"):
        store.split("train", {"noise": noise[:3]})


def test_a_shard_of_another_maker_is_refused_and_one_cut_short_is_absent(tmp_path):
    make(tmp_path)
    first = shard_ranges("train", len(COUNTS), 3)[0]
    assert has_shard(tmp_path, first, IDENTITY)
    with pytest.raises(UserError, match="made from another corpus"):
        has_shard(tmp_path, first, {**IDENTITY, "adapter": "b"})
    path = tmp_path / first.file
    path.write_bytes(path.read_bytes()[:-40])
    assert not has_shard(tmp_path, first, IDENTITY)
    path.write_bytes(b"")
    assert not has_shard(tmp_path, first, IDENTITY)
    with pytest.raises(UserError, match=r"shard-00000.arrow was changed or damaged .* score again"):
        ScoreStore.open(tmp_path)


def test_missing_and_unfinished_stores_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ScoreStore.open(tmp_path / "nowhere")
    make(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match="is unfinished"):
        ScoreStore.open(tmp_path)


def test_the_same_scores_are_the_same_bytes(tmp_path):
    assert make(tmp_path / "a").hash == make(tmp_path / "b").hash
    with pytest.raises(UserError, match="has no split reference; it has train, validation"):
        ScoreStore.open(tmp_path / "a").split("reference")


@pytest.mark.parametrize("place", ["values", "metadata", "footer"])
def test_a_flipped_bit_in_a_shard_is_found(tmp_path, place):
    """In a complete store by its manifest, in an unfinished one by the shard's own hash."""
    make(tmp_path)
    first = shard_ranges("train", len(COUNTS), 3)[0]
    path = tmp_path / first.file
    whole = path.read_bytes()
    value = scores("train")[0][0].tobytes()
    position = {"values": whole.index(value), "metadata": whole.rindex(b"train:0:3"), "footer": len(whole) - 20}[place]
    flipped = bytearray(whole)
    flipped[position] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=r"shard-00000.arrow was changed or damaged"):
        ScoreStore.open(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert not has_shard(tmp_path, first, IDENTITY)
    path.write_bytes(whole)
    assert has_shard(tmp_path, first, IDENTITY)


def test_a_manifest_that_was_changed_is_refused(tmp_path):
    make(tmp_path)
    manifest = tmp_path / "manifest.json"
    text = manifest.read_text()
    for change in (text.replace('"first": 3', '"first": 2'), text.replace('"a"', '"b"'), "{}", "[]"):
        manifest.write_text(change)
        with pytest.raises(UserError, match=r"manifest.json .*[Rr]emove .*manifest.json and score again"):
            ScoreStore.open(tmp_path)
    content = json.loads(text)
    del content["hash"]
    content["shards"][0]["file"] = "../outside.arrow"
    write_manifest(manifest, content)
    with pytest.raises(UserError, match="is no name of something inside"):
        ScoreStore.open(tmp_path)


def test_what_is_no_finite_number_is_not_written(tmp_path):
    first = shard_ranges("train", 2, 2)[0]
    for odd in (np.nan, np.inf, -np.inf):
        columns = {"nll_base": np.zeros(2), "nll_reference": np.array([0.0, odd])}
        with pytest.raises(UserError, match="nll_reference is not a finite number in examples 0 to 1"):
            write_shard(tmp_path, first, IDENTITY, np.array([1, 1]), columns)
    assert not list(tmp_path.iterdir())
