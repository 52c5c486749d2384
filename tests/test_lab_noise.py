import math
from random import Random

import pytest

from forgetting.lab.language import Language, build_language
from forgetting.lab.texts import Kind, noisy_answer


@pytest.fixture(scope="module")
def language() -> Language:
    return build_language(0)


def within(successes: int, trials: int, rate: float) -> bool:
    """Whether a binomial count lies within five standard deviations of its mean."""
    return abs(successes - trials * rate) <= 5 * math.sqrt(trials * rate * (1 - rate))


def test_without_noise_an_answer_is_the_truth(language: Language):
    for item in language.train_items["truthful"]:
        answer = noisy_answer(Random(0), language, item.asked, [0.0] * len(item.asked), 0.0, 0.0)
        assert answer.words == tuple(word for slot in item.asked for word in (slot.name, slot.true))
        assert set(answer.noise) == {Kind.CLEAN}


def test_only_misconceptions(language: Language):
    item = language.train_items["math"][0]
    answer = noisy_answer(Random(0), language, item.asked, [1.0] * len(item.asked), 0.0, 0.0)
    assert answer.words[1::2] == tuple(slot.misconception for slot in item.asked)
    assert answer.noise == (Kind.CLEAN, Kind.MISLEADING) * len(item.asked)


def test_a_misconception_that_is_true_is_clean(language: Language):
    item = next(item for item in language.items["boolean"] if len(item.asked) < 3)
    answer = noisy_answer(Random(0), language, item.slots, [1.0] * 3, 0.0, 0.0)
    kinds = [Kind.MISLEADING if slot in item.asked else Kind.CLEAN for slot in item.slots]
    assert list(answer.noise[1::2]) == kinds


def test_boilerplate_goes_before_a_slot_as_a_whole_phrase(language: Language):
    item = language.train_items["lingual"][0]
    answer = noisy_answer(Random(0), language, item.asked, [0.0] * 3, 0.0, 1.0)
    assert answer.noise == ((Kind.BOILERPLATE,) * 3 + (Kind.CLEAN,) * 2) * 3
    assert all(answer.words[start : start + 3] in language.boilerplates for start in (0, 5, 10))


def test_all_random(language: Language):
    item = language.train_items["lingual"][0]
    answer = noisy_answer(Random(0), language, item.asked, [1.0] * 3, 1.0, 0.0)
    assert answer.noise == (Kind.RANDOM,) * 6
    assert set(answer.words) <= set(language.plain_words)


@pytest.mark.parametrize(("misleading", "random", "boilerplate"), [(0.35, 0.04, 0.06), (0.6, 0.1, 0.1)])
def test_rates(language: Language, misleading: float, random: float, boilerplate: float):
    draw, item, trials = Random(1), language.train_items["truthful"][0], 2_000
    kinds = [
        kind
        for _ in range(trials)
        for kind in noisy_answer(draw, language, item.asked, [misleading] * 3, random, boilerplate).noise
    ]
    assert within(kinds.count(Kind.RANDOM), 6 * trials, random)
    assert within(kinds.count(Kind.MISLEADING), 3 * trials, misleading * (1 - random))
    assert within(kinds.count(Kind.BOILERPLATE) // 3, 3 * trials, boilerplate)
