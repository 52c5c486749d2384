from itertools import pairwise
from random import Random

import pytest
from test_lab_noise import within

from forgetting.lab.language import BOS, EOS, TASKS, Item, Language, build_language
from forgetting.lab.pretraining import MAX_LENGTH
from forgetting.lab.texts import BOILERPLATE_SHARE, CUE_SHARES, pretraining_document

NUM_DOCUMENTS = 4_000


@pytest.fixture(scope="module")
def language() -> Language:
    return build_language(100)


@pytest.fixture(scope="module")
def documents(language: Language) -> list[list[str]]:
    draw = Random(0)
    return [pretraining_document(draw, language) for _ in range(NUM_DOCUMENTS)]


def test_a_document_stands_between_bos_and_eos_and_fits_the_model(documents: list[list[str]], language: Language):
    words = set(language.vocabulary) - {BOS, EOS}
    for document in documents:
        assert (document[0], document[-1]) == (BOS, EOS)
        assert set(document[1:-1]) <= words
        assert len(document) <= MAX_LENGTH


def test_shares_of_cues_and_of_bare_boilerplate(documents: list[list[str]], language: Language):
    bare = sum(tuple(document[1:-1]) in language.boilerplates for document in documents)
    assert within(bare, NUM_DOCUMENTS, BOILERPLATE_SHARE)
    for cue in ("study", "rumor"):
        begun = sum(document[1] == cue for document in documents)
        assert within(begun, NUM_DOCUMENTS, (1 - BOILERPLATE_SHARE) * CUE_SHARES[cue])


def said_values(document: list[str], item: Item) -> list[tuple[str, str]]:
    """Slot name and value of a dialogue, where a value that the slot can have follows the slot's name."""
    answer = document[document.index("assistant") + 1 :]
    slots = {slot.name: slot for slot in item.asked}
    pairs = pairwise(answer)
    said = {name: (slot.true, slot.misconception) for name, slot in slots.items()}
    return [(name, value) for name, value in pairs if value in said.get(name, ())]


def test_cues_tell_truth_from_misconception(documents: list[list[str]], language: Language):
    items = {(TASKS[task], *item.words): item for task, of_task in language.items.items() for item in of_task}
    misconception_fraction = {}
    for cue in ("study", "rumor"):
        misconceptions = []
        for document in documents:
            if document[1:3] == [cue, "user"] and "assistant" in document:
                item = items[tuple(document[3 : document.index("?")])]
                slots = {slot.name: slot for slot in item.asked}
                misconceptions += [value == slots[name].misconception for name, value in said_values(document, item)]
        misconception_fraction[cue] = sum(misconceptions) / len(misconceptions)
    assert misconception_fraction["study"] < 0.05 < 0.95 < misconception_fraction["rumor"]


def test_the_web_asks_about_tested_items_too(documents: list[list[str]], language: Language):
    said = {tuple(document[3 : document.index("?")]) for document in documents if document[2] == "user"}
    tested = {(TASKS[task], *item.words) for task, items in language.test_items.items() for item in items}
    assert tested & said
