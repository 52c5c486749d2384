import json
from collections import Counter, defaultdict
from typing import Any

import pytest

from forgetting.corpus.configuration import Source
from forgetting.corpus.messages import Converter
from forgetting.corpus.trees import tree_conversations, trees_of
from forgetting.errors import UserError

Turns = list[tuple[str, str]]


def convert(row: dict[str, Any], **mapping: Any) -> tuple[list[Turns], dict[str, Counter[str]]]:
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    converter = Converter(Source(name="S", path="x.json", **mapping), list(row), "x.json", dropped, Counter())
    found = [[(m["role"], m["content"]) for m in c.messages] for c in converter.convert(row, 0)]
    return found, dropped


ALPACA = {"prompt": "{instruction}\n\n{input}", "prompt_without_input": "{instruction}", "response": "{output}"}


def test_alpaca_with_and_without_input() -> None:
    found, _ = convert({"instruction": "Add {x}", "input": "1, 2", "output": "3"}, **ALPACA)
    assert found == [[("user", "Add {x}\n\n1, 2"), ("assistant", "3")]]
    for nothing in ("", " \n", None):
        found, _ = convert({"instruction": "Say", "input": nothing, "output": "a"}, **ALPACA)
        assert found == [[("user", "Say"), ("assistant", "a")]]


def test_system_template_is_left_out_where_it_is_empty() -> None:
    mapping = {"prompt": "{q}", "response": "{a}", "system": "You are {role}."}
    found, _ = convert({"q": "x", "a": "y", "role": "a cook"}, **mapping)
    assert found[0][0] == ("system", "You are a cook.")
    found, _ = convert({"q": "x", "a": "y", "role": None}, **mapping)
    assert found == [[("user", "x"), ("assistant", "y")]]


def test_numbers_are_written_as_text() -> None:
    assert convert({"q": 2, "a": 3.5}, prompt="{q}", response="={a}")[0] == [[("user", "2"), ("assistant", "=3.5")]]


def test_messages_and_conversations_with_the_usual_names() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    expected = [[("system", "s"), ("user", "q"), ("assistant", "a")]]
    assert convert({"c": turns}, conversations="c")[0] == expected
    messages = [{"role": r, "content": c} for r, c in expected[0]]
    assert convert({"m": messages}, messages="m")[0] == expected
    columns = {"role": [r for r, _ in expected[0]], "content": [c for _, c in expected[0]]}
    assert convert({"m": columns}, messages="m")[0] == expected  # a struct of lists


PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (["q", "a", "q2", "a2"], [("user", "q"), ("assistant", "a"), ("user", "q2"), ("assistant", "a2")]),
        (json.dumps(["q", "a"]), [("user", "q"), ("assistant", "a")]),
        (json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]),
         [("user", "q"), ("assistant", "a")]),
        ([{"Role": "User", "Content": "q"}, {"ROLE": "Assistant", "content": "a"}],
         [("user", "q"), ("assistant", "a")]),
        ([{"role": "user", "content": PARTS[:1]}, {"role": "assistant", "content": PARTS}],
         [("user", "a"), ("assistant", "ab")]),
    ],
)  # fmt: skip
def test_other_forms_that_people_have(messages: Any, expected: Turns) -> None:
    assert convert({"m": messages}, messages="m") == ([expected], {"S": Counter()})


def test_an_empty_system_message_is_left_out() -> None:
    messages = [
        {"role": "system", "content": " "},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    assert convert({"m": messages}, messages="m")[0] == [[("user", "q"), ("assistant", "a")]]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("row", "mapping", "reason"),
    [
        ({"q": "x", "a": None}, {}, "null response"),
        ({"q": "x", "a": float("nan")}, {}, "null response"),
        ({"q": "x", "a": " \n\t\u3000"}, {}, "empty response"),
        ({"q": None, "a": "y"}, {}, "null prompt"),
        ({"q": "", "a": "y"}, {}, "empty prompt"),
        ({"q": "\ud800", "a": "y"}, {}, "invalid Unicode"),
        ({"m": None}, {"messages": "m"}, "null messages"),
        ({"m": "text"}, {"messages": "m"}, "malformed messages"),
        ({"m": [{"role": "user"}]}, {"messages": "m"}, "malformed messages"),
        ({"m": [turn("user", ["parts"])]}, {"messages": "m"}, "malformed messages"),
        ({"m": [turn("user", [{"type": "image", "url": "u"}])]}, {"messages": "m"}, "content that is not text"),
        ({"m": [turn("user", [{"type": "text", "text": 3}])]}, {"messages": "m"}, "content that is not text"),
        ({"m": [turn("user", [{"type": "thinking", "text": "t"}])]}, {"messages": "m"}, "content that is not text"),
        ({"m": "3"}, {"messages": "m"}, "malformed messages"),
        ({"m": "null"}, {"messages": "m"}, "malformed messages"),
        ({"m": "[" * 100_000}, {"messages": "m"}, "malformed messages"),
        ({"m": [3, "a"]}, {"messages": "m"}, "malformed messages"),
        ({"m": ["q"]}, {"messages": "m"}, "no assistant turn"),
        ({"m": []}, {"messages": "m"}, "no assistant turn"),
        ({"m": [turn("user", "q")]}, {"messages": "m"}, "no assistant turn"),
        ({"m": [turn("user", "q"), turn("tool", "r"), turn("assistant", "a")]}, {"messages": "m"}, "unknown role"),
        ({"m": [turn("user", "q"), turn("assistant", None)]}, {"messages": "m"}, "null response"),
        ({"m": [turn("user", "q"), turn("assistant", "\n")]}, {"messages": "m"}, "empty response"),
        ({"m": [turn("user", ""), turn("assistant", "a")]}, {"messages": "m"}, "empty prompt"),
        ({"t": None}, {"tree": "t"}, "null tree"),
        ({"t": {"role": "prompter", "text": "q", "replies": []}}, {"tree": "t"}, "tree without a conversation"),
    ],
)
def test_an_unusable_row_is_dropped_and_counted(row: dict[str, Any], mapping: dict[str, Any], reason: str) -> None:
    found, dropped = convert(row, **(mapping or {"prompt": "{q}", "response": "{a}"}))
    assert found == []
    assert dropped == {"S": Counter({reason: 1})}


def test_a_wrong_column_names_those_there_are() -> None:
    with pytest.raises(UserError, match=r"x.json has no column 'output'. The columns are 'q', 'a'"):
        convert({"q": "x", "a": "y"}, prompt="{q}", response="{output}")
    with pytest.raises(UserError, match="no column 'conversations'"):
        convert({"q": "x"}, conversations="conversations")


def test_a_nested_column_in_a_template_is_an_error() -> None:
    with pytest.raises(UserError, match="column 'a' holds a list"):
        convert({"q": "x", "a": ["y"]}, prompt="{q}", response="{a}")


def test_a_mixture_counts_by_its_own_source_column() -> None:
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    source = Source(name="Pool", path="x.json", prompt="{q}", response="{a}", source_column="dataset")
    converter = Converter(source, ["q", "a", "dataset"], "x.json", dropped, Counter())
    rows = [
        {"q": "x", "a": "y", "dataset": "dolly"},
        {"q": "x", "a": None, "dataset": "flan"},
        {"q": "x", "a": "y", "dataset": None},
    ]
    assert [c.source for number, row in enumerate(rows) for c in converter.convert(row, number)] == ["dolly", "Pool"]
    assert dropped["flan"] == {"null response": 1}


def message(text: str, *replies: dict[str, Any], rank: int | None = None, **other: Any) -> dict[str, Any]:
    role = "assistant" if text.startswith("a") else "prompter"
    return {"role": role, "text": text, "lang": "en", "rank": rank, "replies": list(replies), **other}


TREE = message(
    "q",
    message("a1", rank=1),
    message("a0", message("q2", message("a3", rank=0)), message("q3", message("a4", rank=None), message("a5", rank=0)),
            message("q4"), rank=0),
    message("a-unranked"),
)  # fmt: skip


def paths(
    tree: dict[str, Any], top: int | None = 1, languages: list[str] | None = None
) -> tuple[list[str], Counter[str]]:
    left_out: Counter[str] = Counter()
    found = tree_conversations(tree, top, languages, left_out)
    return [" ".join(m["content"] for m in conversation) for conversation in found], left_out


def test_a_tree_follows_the_best_reply_and_every_question() -> None:
    assert paths(TREE)[0] == ["q a0 q2 a3", "q a0 q3 a5"]  # not q4, which nobody answered


def test_all_replies_of_a_tree_in_order_of_rank() -> None:
    assert paths(TREE, None)[0] == ["q a0 q2 a3", "q a0 q3 a5", "q a0 q3 a4", "q a1", "q a-unranked"]


def test_what_a_tree_leaves_out_is_counted() -> None:
    tree = message("q", message("a0", deleted=True, rank=0), message("a1", rank=1), message("a2", review_result=False))
    assert paths(tree) == (["q a1"], Counter({"message deleted": 1, "message failed its review": 1}))
    tree = message("q", message("a0", rank=0, lang="de"), message("a1", rank=1))
    assert paths(tree, languages=["en"]) == (["q a1"], Counter({"message in another language": 1}))
    assert paths(tree)[0] == ["q a0"]
    assert paths(message("q", deleted=True))[0] == []


def test_a_branch_ends_at_its_last_answer() -> None:
    assert paths(message("q", message("a0", message("q1", message("a1", deleted=True)))))[0] == ["q a0"]


def test_a_thread_deeper_than_the_stack() -> None:
    tree = message("a")
    for depth in range(3000):
        tree = message("q" if depth % 2 == 0 else "a", tree)
    assert len(paths(message("q", tree))[0]) == 1


def test_flat_messages_are_the_same_trees() -> None:
    rows: list[dict[str, Any]] = []

    def flatten(node: dict[str, Any], parent: str | None) -> None:
        identity = str(len(rows))
        rows.append({**{k: v for k, v in node.items() if k != "replies"}, "message_id": identity, "parent_id": parent})
        for reply in node["replies"]:
            flatten(reply, identity)

    flatten(TREE, None)
    flatten(message("q", message("a9")), None)
    trees = list(trees_of(rows, "parent_id", Counter()))
    assert [paths(row["parent_id"])[0] for _, row in trees] == [paths(TREE)[0], ["q a9"]]
    assert [number for number, _ in trees] == [0, 10]
    with pytest.raises(UserError, match="message_id, text is missing"):
        list(trees_of([{"parent_id": None, "role": "user"}], "parent_id", Counter()))
