"""From the columns of a file to the mapping that its rows have."""

import json
from typing import Any

import pytest

from forgetting.corpus.guess import Given, guess_mapping
from forgetting.errors import UserError

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def guessed(row: dict[str, Any], **given: str) -> dict[str, str]:
    return guess_mapping(list(row), [row, row], Given(**given), "x.json").mapping


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"question": "q", "answer": "a"}, {"prompt": "{question}", "response": "{answer}"}),
        ({"answer": "a", "question": "q"}, {"prompt": "{question}", "response": "{answer}"}),  # whatever their order
        ({"q": "q", "a": 3}, {"prompt": "{q}", "response": "{a}"}),
        ({"input": "q", "output": "a"}, {"prompt": "{input}", "response": "{output}"}),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "{prompt}", "response": "{chosen}"}),
        ({"Customer Question: long": "q", "Our Reply (EN)": "a", "Ticket ID": "7"},
         {"prompt": "{Customer Question: long}", "response": "{Our Reply (EN)}"}),
        ({"userQuery": "q", "modelAnswer": "a"}, {"prompt": "{userQuery}", "response": "{modelAnswer}"}),
        ({"Frage": "q", "Antwort": "a"}, {"prompt": "{Frage}", "response": "{Antwort}"}),
        ({"question_id": "1", "question": "q", "answer": "a", "answer_score": "2"},
         {"prompt": "{question}", "response": "{answer}"}),
        ({"Foo": "q", "answer": "a"}, {"prompt": "{Foo}", "response": "{answer}"}),  # one is known, one is left
        ({"answer_type": "short", "question": "q", "foo": "a"}, {"prompt": "{question}", "response": "{foo}"}),
        ({"system_prompt": "s", "question": "q", "response": "a"},
         {"prompt": "{question}", "response": "{response}", "system": "{system_prompt}"}),
        ({"messages": CHAT, "id": "x"}, {"messages": "messages"}),
        ({"dialog": json.dumps(CHAT)}, {"messages": "dialog"}),
        ({"conversations": SHAREGPT}, {"conversations": "conversations"}),
        ({"messages": SHAREGPT}, {"conversations": "messages"}),  # what is in it counts, not what it is called
        ({"conversations": ["q", "a"]}, {"messages": "conversations"}),  # LIMA
        ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, {"messages": "messages"}),
        ({"question": "q", "answer": "a", "tags": ["x", "y"]}, {"prompt": "{question}", "response": "{answer}"}),
        ({"message_id": "1", "parent_id": None, "text": "q", "role": "prompter"}, {"tree": "parent_id"}),
        ({"prompt": {"role": "prompter", "text": "q", "replies": []}}, {"tree": "prompt"}),
    ],
)  # fmt: skip
def test_usual_and_odd_columns(row: dict[str, Any], mapping: dict[str, str]) -> None:
    assert guessed(row) == mapping


ALPACA = {"prompt": "{instruction}\n\n{input}", "prompt_without_input": "{instruction}", "response": "{output}"}


@pytest.mark.parametrize(
    ("more", "mapping"),
    [
        ({"input": "i"}, ALPACA),
        ({"input": ""}, ALPACA),  # later rows may fill it
        ({"input": "", "history": []}, {**ALPACA, "history": "history"}),
        ({"input": "", "system": None, "history": [["a", "b"]]},
         {**ALPACA, "system": "{system}", "history": "history"}),
        ({}, {"prompt": "{instruction}", "response": "{output}"}),
    ],
)  # fmt: skip
def test_alpaca(more: dict[str, Any], mapping: dict[str, str]) -> None:
    row = {"instruction": "q", **more, "output": "a"}
    assert guess_mapping(list(row), [row], Given(), "x.json").form == "Alpaca (instruction, input, output)"
    assert guessed(row) == mapping


def test_what_is_given_is_taken() -> None:
    row = {"question": "q", "other": "o", "answer": "a", "talk": SHAREGPT, "messages": CHAT}
    assert guessed(row, prompt="{other}!")["prompt"] == "{other}!"
    assert guessed(row, prompt="{other}!")["response"] == "{answer}"
    assert guessed(row, prompt="{answer}", response="{question}") == {"prompt": "{answer}", "response": "{question}"}
    assert guessed({"question": "q", "answer": "a"}, prompt="{answer}")["response"] == "{question}"  # what is left
    assert guessed(row, messages="talk") == {"conversations": "talk"}
    with pytest.raises(UserError, match="leave --prompt and --response out"):
        Given(messages="talk", prompt="{question}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "1", "foo": "one two", "bar": "3 4"}, r"no column .* prompt or the response(.|\n)*--prompt \'{foo}\'"),
        ({"x": "q", "y": "r", "answer": "a"}, r"like the prompt\. (.|\n)*  y: \'r\'(.|\n)*such as: --prompt \'{x}\'\n"),
        ({"Give a title": "t", "prompt": "q", "text": "a"}, r"looks like the response"),  # "a" is an article here
        ({"question_de": "q", "question_en": "q", "answer": "a"}, r"several columns that look like the prompt"),
        ({"a1": CHAT, "a2": CHAT}, r"several columns of conversations(.|\n)*--messages a1"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, r"no column that looks like the prompt or the response"),
        ({"question": "q", "title": "t", "answers": {"text": ["a"]}}, r"looks like the response"),  # and no title is
        ({"messages": [*CHAT, {"role": "tool", "content": "x"}]}, r"\(no conversation: unknown role\)"),
        ({"prompt": CHAT[:1], "foo": "x"}, r"\(no conversation: no assistant turn\)"),
        ({"foo": {"turns": CHAT}}, r"\(no conversation: malformed messages\)"),
        ({"x" * 99: "y" * 99, "z": ""}, r"\n  x{60}\.\.\.: 'y{59}\.\.\.\n  z: \(empty\)\n"),
        ({f"c{i}": "x" for i in range(50)}, r"  c19: 'x'\n  \.\.\. and 30 more\n"),
    ],
)
def test_columns_that_are_not_clear_are_listed_with_what_to_write(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        guessed(row)
