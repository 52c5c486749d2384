from pathlib import Path
from random import Random

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.lab.language import Language, build_language
from forgetting.lab.pretraining import (
    Pretraining,
    next_token_loss,
    one_thread,
    pack,
    pretrain,
    untrained_model,
    word_tokenizer,
    write_base,
)
from forgetting.lab.texts import pretraining_document

SMALL = Pretraining(hidden=32, layers=1, heads=2, steps=3, documents=8)


@pytest.fixture(scope="module")
def language() -> Language:
    return build_language(0)


def encoded_documents(language: Language, number: int, seed: int = 0) -> list[list[int]]:
    ids = {word: i for i, word in enumerate(language.vocabulary)}
    draw = Random(seed)
    return [[ids[word] for word in pretraining_document(draw, language)] for _ in range(number)]


def test_packing_keeps_every_document_whole(language: Language):
    documents = encoded_documents(language, 50)
    packed = pack(documents, 32)
    found = []
    for row, positions, mask in zip(packed.input_ids, packed.position_ids, packed.attention_mask[:, 0], strict=True):
        starts = [place for place in range(32) if positions[place] == 0 and row[place] == 1]
        for start in starts:
            end = start + next(n for n in range(1, 33 - start) if row[start + n - 1] == 2)
            found.append(row[start:end].tolist())
            seen = mask[start:end]
            assert seen[:, start:end].equal(torch.ones(end - start, end - start, dtype=torch.bool).tril())
            assert seen.sum() == seen[:, start:end].sum()
            assert positions[start:end].tolist() == list(range(end - start))
    assert sorted(found) == sorted(documents)
    assert packed.predicted.sum() == sum(len(document) - 1 for document in documents)
    assert len(packed.input_ids) <= 1.2 * sum(map(len, documents)) / 32 + 1


def test_the_loss_of_packed_documents_is_that_of_each_document_alone(language: Language):
    model = untrained_model(language, 0, SMALL).double()
    documents = encoded_documents(language, 12)
    nll = []
    for document in documents:
        ids = torch.tensor([document])
        logits = model(input_ids=ids).logits[0, :-1]
        nll.append(functional.cross_entropy(logits, ids[0, 1:], reduction="none"))
    torch.testing.assert_close(next_token_loss(model, pack(documents, 32)), torch.cat(nll).mean())


def test_learning_rate_rises_then_falls_to_a_fiftieth():
    settings = Pretraining()
    rates = [settings.rate(step) for step in range(settings.steps)]
    assert rates[0] == pytest.approx(settings.learning_rate / 50)
    assert rates.index(max(rates)) == 49
    assert rates[300] == pytest.approx(settings.learning_rate / 2)
    assert rates[-1] == pytest.approx(settings.learning_rate * 0.02)


def test_pretraining_lowers_the_loss_on_other_documents(language: Language):
    settings = Pretraining(hidden=32, layers=1, heads=2, steps=60, documents=16)
    held_out = pack(encoded_documents(language, 64, seed=1), 64)
    untrained, pretrained = untrained_model(language, 0, settings), pretrain(language, 0, settings)
    with torch.no_grad():
        before, after = next_token_loss(untrained, held_out), next_token_loss(pretrained, held_out)
    assert after < 0.85 * before


def test_the_seed_decides_the_weights_and_nothing_outside_is_touched(language: Language):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    steps = []
    one, same = (
        pretrain(language, 1, SMALL, lambda done, total: steps.append((done, total))),
        pretrain(language, 1, SMALL),
    )
    other = pretrain(language, 2, SMALL)
    assert torch.get_rng_state().equal(state)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    weights = [model.model.embed_tokens.weight for model in (one, same, other)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])


def test_one_thread_inside_and_as_many_as_before_outside():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_one_token_a_word(language: Language):
    tokenizer = word_tokenizer(language)
    text = "user what e1 ? assistant color color_3"
    ids = tokenizer(text)["input_ids"]
    assert [language.vocabulary[i] for i in ids] == ["<bos>", *text.split()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer("no such thing")["input_ids"][2] == tokenizer.unk_token_id


def test_the_base_is_an_ordinary_model_folder(tmp_path: Path, language: Language):
    write_base(tmp_path / "base", language, 0, SMALL)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert tokenizer.is_fast
    assert len(tokenizer) == model.config.vocab_size == len(language.vocabulary)
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert (model.config.pad_token_id, model.config.bos_token_id, model.config.eos_token_id) == (0, 1, 2)
    assert tokenizer("e1")["input_ids"][0] == tokenizer.bos_token_id
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_the_labs_base_has_half_a_million_parameters(language: Language):
    model = untrained_model(language, 0, Pretraining())
    assert 0.48e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.5e6
