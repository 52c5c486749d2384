"""Planted noise: what each kind changes, where it says that it did, and how often."""

import json
import re
from random import Random

import pytest

from forgetting.corpus.messages import Example
from forgetting.corpus.noise import NoiseSpan
from forgetting.corpus.pool import Examples
from forgetting.errors import UserError
from forgetting.planting.kinds import CLOSINGS, KINDS, OPENINGS, Others, Planted, plant
from forgetting.planting.plant import plant_pool

RESPONSES = [
    "The treaty was signed in 1848 by Nicholas Trist, and it cost 15,000,000 dollars.",
    "No. A penguin cannot fly, though it swims at 36 km per hour.",
    "It was Marie Curie who found radium in 1898; Pierre Curie helped her.",
    "First, whisk the eggs. Then add flour, sugar and butter, and bake for 25 minutes.",
    "Paris is the capital of France, and Lyon lies on the Rhône.",
    "True: every square is a rectangle with four equal sides.",
    "(B) is right, since plants make sugar from light.",
    "Ça va bien. Le train part à 7.45 heures de la gare de Lyon.",
]
PROMPT = "Which one?\n(A) stone\n(B) plant\n(C) metal"
OTHERS = Others([(f"Question {place}", response) for place, response in enumerate(RESPONSES)])


def outside(planted: Planted) -> str:
    """What is not noise."""
    text, end = "", 0
    for start, stop, _ in planted.noise:
        text, end = text + planted.response[end:start], stop
    return text + planted.response[end:]


def is_subsequence(part: str, whole: str) -> bool:
    characters = iter(whole)
    return all(character in characters for character in part)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(20))
def test_what_is_not_noise_stands_as_it_was(kind: str, seed: int):
    num_planted = 0
    for response in RESPONSES:
        planted = plant(kind, PROMPT, response, OTHERS, Random(seed))
        if planted is None:
            continue
        num_planted += 1
        assert planted.response != response
        assert {span.kind for span in planted.noise} == {kind}
        assert all(a.end <= b.start for a, b in zip(planted.noise, planted.noise[1:], strict=False))
        assert all(planted.response[start:end] for start, end, _ in planted.noise)
        if kind == "answer":
            assert outside(planted) == ""
            assert planted.response in RESPONSES
        elif kind == "phrases":
            assert outside(planted) == response
            assert [planted.response[start:end] for start, end, _ in planted.noise] == [
                next(text for text in OPENINGS if planted.response.startswith(text)),
                next(text for text in CLOSINGS if planted.response.endswith(text)),
            ]
        else:
            assert is_subsequence(outside(planted), response)
            assert len(planted.response.split()) == len(response.split())
    assert num_planted >= 3


def test_numbers_and_names_are_swapped_for_others_of_their_kind():
    planted = plant("entities", PROMPT, RESPONSES[0], OTHERS, Random(0))
    assert planted is not None
    year, name, price = [planted.response[start:end] for start, end, _ in planted.noise]
    assert re.fullmatch(r"\d{4}", year)
    assert year != "1848"
    assert name in ("Marie Curie", "Pierre Curie")
    assert re.fullmatch(r"\d\d,\d{3},\d{3}", price)
    assert plant("entities", PROMPT, "Nothing here has a number or a name.", OTHERS, Random(0)) is None


def test_words_lose_the_order_of_their_letters_or_their_place():
    response = RESPONSES[3]
    planted = plant("words", PROMPT, response, OTHERS, Random(1))
    assert planted is not None
    assert sorted(planted.response) == sorted(response)
    share = sum(a != b for a, b in zip(planted.response.split(), response.split(), strict=True)) / len(response.split())
    assert 0.2 < share < 0.5
    assert plant("words", PROMPT, "Only three words.", OTHERS, Random(0)) is None


@pytest.mark.parametrize(
    ("prompt", "response", "contradicted"),
    [
        ("Can it fly?", "No. It swims.", "Yes. It swims."),
        ("Can it fly?", "yes", "no"),
        ("Is it?", '"True", they say.', '"False", they say.'),
        ("Is it?", "NO, no way", "YES, no way"),
        ("Can it?", "Yes it can", "No it can"),
        ("Can it?", "no\nIt cannot", "yes\nIt cannot"),
        ("Which?\nOptions:\n- yes\n- no", "yes", "no"),
        ("Which?\r\nOptions:\r\n- yes\r\n- no\r\n- maybe", "no", "yes"),
        ("Which?\nOptions:\n- red\n- reddish", "reddish: it is.", "red: it is."),
        ("Which?\n(A) a\n(B) b", "(B) since b.", "(A) since b."),
        ("Which?\nA. a\nB. b", "A. a", "B. a"),
        ("Which?\nA) a\nB) b", "B", "A"),
    ],
)
def test_a_choice_is_contradicted_and_its_explanation_left(prompt: str, response: str, contradicted: str):
    planted = plant("contradiction", prompt, response, OTHERS, Random(0))
    assert planted is not None
    assert planted.response == contradicted
    (span,) = planted.noise
    assert response.startswith(contradicted[: span.start])
    assert response.endswith(contradicted[span.end :])


@pytest.mark.parametrize(
    "response",
    [
        "Notable work.",
        "A penguin.",
        "It depends.",
        "Truely so.",
        "No matter how.",
        '"No Foe May Pass" is it.',
        "False claims.",
    ],
)
def test_where_no_choice_is_made_none_is_contradicted(response: str):
    assert plant("contradiction", "Which?\nA. a\nB. b", response, OTHERS, Random(0)) is None


def test_another_answer_is_none_that_the_prompt_has_already():
    replies = [("Is it?", reply) for reply in ("yes", "Yes.", "yes\n", "no", "No!")]
    assert plant("answer", "Is it?", "yes", Others(replies), Random(0)) is None
    others = Others([*replies, ("May I?", "nay")])
    assert plant("answer", "Is it?", "yes", others, Random(0)) == Planted("nay", (NoiseSpan(0, 3, "answer"),))
    elsewhere = plant("answer", "And?", "YES!", others, Random(0))  # to another prompt each no is an answer, and no yes
    assert elsewhere is not None
    assert elsewhere.response in ("no", "No!", "nay")


def pool(number: int, last: str = "assistant") -> Examples:
    examples = Examples()
    for place in range(number):
        messages = [
            {"role": "user", "content": f"Question {place}"},
            {"role": "assistant", "content": f"A first answer of {place} words."},
            {"role": "user", "content": f"And {place}?"},
            {"role": "assistant", "content": RESPONSES[place % len(RESPONSES)] + f" Case {place}."},
        ]
        if last == "user":
            messages.append({"role": "user", "content": "Thanks."})
        examples.append(Example(messages, "made" if place % 2 else "other", place))
    return examples


RATES = {"answer": 0.1, "entities": 0.1, "phrases": 0.1, "words": 0.1, "contradiction": 0.05}


def test_every_kind_has_its_share_and_every_example_at_most_one():
    planted = plant_pool(pool(400), RATES, 3)
    assert planted.counts() == {"answer": 40, "entities": 40, "phrases": 40, "words": 40, "contradiction": 20}
    rows = planted.rows()
    assert len(rows) == 400
    for row, text in zip(rows, pool(400).texts, strict=True):
        assert row["clean"] == json.loads(text)  # the clean twin
        assert len(row["messages"]) == 4
        assert row["messages"][:-1] == row["clean"][:-1]
        assert (row["messages"] == row["clean"]) == (not row["noise"])
        assert len({kind for _, _, kind in row["noise"]}) <= 1


def test_the_draw_is_the_seeds_and_not_the_orders():
    one, again, other = (plant_pool(pool(100), RATES, seed).rows() for seed in (0, 0, 1))
    assert one == again
    assert one != other
    backward = pool(100).take(list(reversed(range(100))))
    assert sorted(map(str, plant_pool(backward, RATES, 0).rows())) == sorted(map(str, one))


def test_where_a_kind_fits_too_few_examples_there_is_less_of_it_and_the_counts_say_so():
    planted = plant_pool(pool(80), {"contradiction": 0.9}, 0)
    assert planted.wanted == {"contradiction": 72}
    assert 0 < planted.counts()["contradiction"] < 72
    assert plant_pool(pool(8, last="user"), RATES, 0).planted == {}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"words": 2.0}, "rate of words is 2"),
        ({"words": -0.1}, "rate of words is -0.1"),
        ({"words": float("nan")}, "rate of words is nan"),
        ({"words": 0.6, "phrases": 0.6}, "add up to 1.2"),
        ({"typos": 0.1}, "no noise of the kind 'typos'; there is answer, entities"),
    ],
)
def test_rates_that_cannot_be_meant_are_refused(rates: dict[str, float], message: str):
    with pytest.raises(UserError, match=message):
        plant_pool(pool(8), rates, 0)


def test_a_source_with_noise_of_its_own_is_refused():
    examples = pool(8)
    examples.noise[3] = ((0, 2, "typo"),)  # type: ignore[assignment]
    with pytest.raises(UserError, match="noise of their own"):
        plant_pool(examples, RATES, 0)
