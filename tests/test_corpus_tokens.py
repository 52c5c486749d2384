import json
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from forgetting.corpus import tokens
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.encoding import Encoder
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.corpus.templates import Plain
from forgetting.corpus.tokens import tokenize_corpus
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
        patched.setattr(tokens, "Encoder", lambda *_: pytest.fail("tokenised again"))
        opened = tokenize_corpus(corpus, tiny_tokenizer, "plain", 64)
    assert opened.folder == made.folder
    assert opened.content_hash == made.content_hash
    others = [
        tokenize_corpus(corpus, tiny_tokenizer, "plain", 65),
        tokenize_corpus(corpus, tiny_tokenizer, "tulu", 64),
        tokenize_corpus(corpus, tiny_tokenizer, Plain("</s>", " "), 64),
    ]
    assert len({made.folder, *(other.folder for other in others)}) == 4


def test_the_same_tokens_have_the_same_hash_everywhere(
    corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    first = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 77)
    shutil.copytree(corpus.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("tokens-*"))
    second = tokenize_corpus(Corpus(tmp_path / "copy"), tiny_tokenizer, "tulu", 77)
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
    start = time.perf_counter()
    for _ in range(100):
        for i in range(70):
            fresh._input_ids[fresh._offsets[i] : fresh._offsets[i + 1]]
    assert (time.perf_counter() - start) / 7000 < 1e-4


def test_a_split_travels_to_another_process_by_name(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    split = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 2048).split("train")
    sent = pickle.dumps(split)
    assert len(sent) < 1000
    received = pickle.loads(sent)  # noqa: S301
    assert (received.input_ids(5) == split.input_ids(5)).all()


def test_a_damaged_token_folder_is_refused(corpus: Corpus, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    made = tokenize_corpus(corpus, tiny_tokenizer, "tulu", 333)
    (made.folder / "train/input_ids.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged: train/input_ids.npy has 0 bytes.* Remove it \(rm -r "):
        tokenize_corpus(corpus, tiny_tokenizer, "tulu", 333)


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
