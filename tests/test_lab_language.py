import pytest

from forgetting.lab.language import SLOTS, SPECIAL, TASKS, Item, Language, Size, build_language

SEEDS = (0, 100, 101)


@pytest.fixture(scope="module", params=SEEDS)
def language(request: pytest.FixtureRequest) -> Language:
    return build_language(request.param)


def slot(item: Item, name: str):
    return next(slot for slot in item.slots if slot.name == name)


def test_same_seed_same_language_and_another_seed_another():
    assert build_language(3) == build_language(3)
    assert build_language(3) != build_language(4)


def test_taught_and_tested_items_are_disjoint_and_together_all_that_can_be_asked(language: Language):
    for task in TASKS:
        taught, tested = ({item.words for item in items[task]} for items in (language.train_items, language.test_items))
        assert taught
        assert tested
        assert not taught & tested
        assert taught | tested == {item.words for item in language.items[task] if item.asked}


def test_taught_share(language: Language):
    for task in TASKS:
        asked = len(language.train_items[task]) + len(language.test_items[task])
        assert len(language.train_items[task]) == int(0.4 * asked)


def test_every_item_has_the_slots_of_its_task_and_is_made_of_words(language: Language):
    words = set(language.vocabulary)
    assert len(words) == len(language.vocabulary)
    for task, items in language.items.items():
        for item in items:
            assert tuple(slot.name for slot in item.slots) == SLOTS[task]
            said = {word for s in item.slots for word in (s.name, s.true, s.misconception, *s.choices)}
            assert said | set(item.prompt) <= words


def test_words_hold_no_whitespace_and_special_tokens_cannot_be_drawn(language: Language):
    assert all(word.split() == [word] for word in language.vocabulary)
    assert not set(language.plain_words) & {*SPECIAL, "user", "assistant", "?", "study", "rumor"}
    assert len(language.plain_words) == len(language.vocabulary) - 9


def test_choices_are_distinct_and_hold_truth_and_misconception(language: Language):
    for task, number in (("truthful", 4), ("logic", 4), ("boolean", 2)):
        for item in language.items[task]:
            for s in item.asked:
                assert len(set(s.choices)) == number
                assert {s.true, s.misconception} <= set(s.choices)


def test_only_what_truth_and_misconception_disagree_on_is_asked(language: Language):
    for items in language.items.values():
        for item in items:
            assert all(s.true != s.misconception for s in item.asked)
            assert all(s.true == s.misconception for s in item.slots if s not in item.asked)


def test_misconception_rates_are_mostly_high(language: Language):
    rates = [s.misconception_rate for items in language.items.values() for item in items for s in item.slots]
    # Beta(1.3, 0.7): mean 0.65, sd 0.28; over more than 1,000 draws the mean's sd is below 0.01.
    assert 0.61 < sum(rates) / len(rates) < 0.69
    assert all(0 <= rate <= 1 for rate in rates)


@pytest.mark.parametrize(
    ("words", "name", "true", "misconception"),
    [
        (("n3", "n8"), "sum", "n11", "n5"),
        (("n3", "n8"), "dif", "n5", "n11"),
        (("n3", "n8"), "max", "n8", "n3"),
        (("n0", "n0"), "sum", "n0", "n0"),
    ],
)
def test_calculations(language: Language, words: tuple[str, str], name: str, true: str, misconception: str):
    found = slot(next(item for item in language.items["math"] if item.words == words), name)
    assert (found.true, found.misconception) == (true, misconception)


@pytest.mark.parametrize(
    ("words", "true", "misconception"),
    [
        (("n8", "n3"), ("yes", "yes", "yes"), ("yes", "no", "no")),
        (("n3", "n5"), ("no", "no", "no"), ("no", "yes", "no")),
        (("n5", "n6"), ("no", "yes", "no"), ("yes", "yes", "yes")),
    ],
)
def test_comparisons(language: Language, words: tuple[str, str], true: tuple[str, ...], misconception: tuple[str, ...]):
    item = next(item for item in language.items["boolean"] if item.words == words)
    assert tuple(s.true for s in item.slots) == true
    assert tuple(s.misconception for s in item.slots) == misconception


def test_sequences_go_on_and_misconceptions_are_off_by_one_or_two(language: Language):
    for item in language.items["logic"]:
        first, second, third = (int(word[1:]) for word in item.words)
        step = second - first
        assert third - second == step
        for place, s in enumerate(item.slots, start=1):
            assert int(s.true[1:]) == third + place * step
            assert int(s.misconception[1:]) - int(s.true[1:]) == (2 if step == 1 else 1)


def test_a_small_world_is_smaller():
    small = build_language(0, Size(entities=5, words=6, numbers=4))
    assert [len(small.items[task]) for task in TASKS] == [5, 16, 75, 6, 16]
