import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from forgetting import artifacts
from forgetting.corpus import tokens
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.encoding import Encoder
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.corpus.templates import Plain
from forgetting.corpus.tokens import TokenizedCorpus, tokenize_corpus
from forgetting.errors import UserError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"q": f"question {i}" + " long" * 40 * (i % 10 == 0), "a": f"answer {i}"} for i in range(100)]
    (folder / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = Source(name="S", path=str(folder / "x.jsonl"), prompt="{q}", response="{a}")
    return prepare_corpus(
        CorpusConfig({"made": source}, num_train=70, num_reference=30, num_validation=0), folder / "corpora"
    )


def test_examples_are_what_the_encoder_gives(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenized = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048)
    split, messages = tokenized.split("train"), corpus.split("train")
    assert len(split) == 70
    assert split.name == "train"
    assert split.rows.tolist() == list(range(70))
    for i in range(len(split)):
        answer = messages[i]["messages"][1]["content"]
        ids, mask = split.input_ids(i), split.response_mask(i)
        assert tiny_tokenizer.decode(ids[mask]) == answer + "</s>"
        assert split.lengths[i] == len(ids) == len(mask)
        assert split.num_targets[i] == mask.sum()
    types = [split.input_ids(0), split.response_mask(0), split.lengths, split.num_targets, split.rows]
    assert [array.dtype for array in types] == [np.int32, np.bool_, np.int32, np.int32, np.int64]
    assert tokenized.manifest["splits"]["train"]["tokens"] == split.lengths.sum()
    assert tokenized.manifest["splits"]["train"]["targets"] == split.num_targets.sum()


def test_long_examples_are_cut_or_dropped_and_counted(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tokenized = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 100)
    split, entry = tokenized.split("train"), tokenized.manifest["splits"]["train"]
    long = [i for i, row in enumerate(corpus.split("train")) if "long" in row["messages"][0]["content"]]
    assert long
    assert entry["without_target"] == {"S": len(long)}
    assert entry["truncated"] == {"S": len(long)}
    assert split.rows.tolist() == [i for i in range(70) if i not in long]
    assert split.num_targets.min() >= 1
    assert split.lengths.max() <= 100


def test_an_empty_split_has_no_examples(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    split = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048).split("validation")
    assert len(split) == 0
    assert split.lengths.tolist() == split.num_targets.tolist() == split.rows.tolist() == []


def test_a_second_call_opens_what_is_there(
    corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tokenize_corpus(corpus, tiny_tokenizer, "plain", 64)
    with monkeypatch.context() as patched:
        patched.setattr(tokens, "Encoder", lambda *_: pytest.fail("tokenized again"))
        opened = tokenize_corpus(corpus, tiny_tokenizer, "plain", 64)
    assert opened.folder == made.folder
    assert opened.content_hash == made.content_hash
    own = Plain("</s>")
    own.identity["version"] = 2
    others = [
        tokenize_corpus(corpus, tiny_tokenizer, "plain", 65),
        tokenize_corpus(corpus, tiny_tokenizer, "tulu", 64),
        tokenize_corpus(corpus, tiny_tokenizer, own, 64),
    ]
    assert len({made.folder, *(other.folder for other in others)}) == 4


def test_the_same_tokens_have_the_same_hash_everywhere(
    corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 77)
    shutil.copytree(corpus.folder, tmp_path / corpus.folder.name, ignore=shutil.ignore_patterns("tokens-*"))
    second = tokenize_corpus(Corpus(tmp_path / corpus.folder.name), tiny_tokenizer, "tulu", 77)
    assert first.content_hash == second.content_hash
    files = [sorted(folder.rglob("*.*")) for folder in (first.folder, second.folder)]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_reading_is_a_view_of_the_mapped_file(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    split = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048).split("train")
    assert type(split.input_ids(3)) is np.ndarray
    assert np.shares_memory(split.input_ids(3), split.input_ids(3))
    tensor = torch.from_numpy(split.input_ids(3))  # no warning: warnings are errors here
    before = int(tensor[1])
    tensor[1] = 0
    fresh = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048).split("train")
    assert fresh.input_ids(3)[1] == before  # the file cannot be changed through it


def test_a_split_travels_to_another_process_by_name(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    split = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048).split("train")
    sent = pickle.dumps(split)
    assert len(sent) < 1000
    received = pickle.loads(sent)  # noqa: S301
    assert (received.input_ids(5) == split.input_ids(5)).all()


def test_a_damaged_token_folder_is_refused(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    made = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 333)
    (made.folder / "train/input_ids.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"train/input_ids.npy was changed or damaged.* Remove it \(rm -r "):
        tokenize_corpus(corpus, tiny_tokenizer, "tulu", 333)


@pytest.mark.parametrize("name", tokens.ARRAYS)
def test_one_flipped_bit_of_an_array_is_refused(
    corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, name: str
) -> None:
    made = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048)
    copy = tmp_path / made.folder.name
    shutil.copytree(made.folder, copy)
    TokenizedCorpus(copy)  # control
    file = copy / f"train/{name}.npy"
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=rf"train/{name}.npy was changed or damaged .* Remove it \(rm -r"):
        TokenizedCorpus(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["splits"]["train"].update(content_hash="0" * 64),
        lambda content: content["identity"].update(max_length=1024),
        lambda content: content["splits"].clear(),
    ],
)
def test_a_changed_manifest_is_refused(
    corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    made = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048)
    copy = tmp_path / made.folder.name
    shutil.copytree(made.folder, copy)
    content = json.loads((copy / "manifest.json").read_text())
    change(content)
    (copy / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="manifest.json was changed or damaged"):
        TokenizedCorpus(copy)
    shutil.copytree(made.folder, tmp_path / "tokens-other")
    with pytest.raises(UserError, match=f"tokens-other is not what its name says: it was made as {made.folder.name}"):
        TokenizedCorpus(tmp_path / "tokens-other")


def test_a_split_reopened_by_a_worker_hashes_nothing(
    corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048).split("train")
    sent = pickle.dumps(split)
    monkeypatch.setattr(artifacts, "hash_file", lambda _: pytest.fail("hashed"))
    assert len(pickle.loads(sent)) == len(split)  # noqa: S301
    with pytest.raises(pytest.fail.Exception):  # control
        TokenizedCorpus(split.folder.parent)


def test_nothing_is_left_behind_by_an_error(
    corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(corpus.folder.iterdir())
    with pytest.raises(UserError, match="No example of train has a response token within max_length 5"):
        tokenize_corpus(corpus, tiny_tokenizer, "tulu", 5)
    with pytest.raises(UserError, match="max_length is 1; expected at least 2"):
        tokenize_corpus(corpus, tiny_tokenizer, "tulu", 1)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Encoder, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus(corpus, tiny_tokenizer, "tulu", 6)
    assert sorted(corpus.folder.iterdir()) == before


def test_a_refused_conversation_is_named(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tiny_tokenizer.chat_template = "{{ raise_exception('no') }}"
    try:
        with pytest.raises(
            UserError, match=r"refuses a conversation of .*: no \(train, row 0, source 'S', its row \d+\)"
        ):
            tokenize_corpus(corpus, tiny_tokenizer, "chat", 64)
    finally:
        tiny_tokenizer.chat_template = None
