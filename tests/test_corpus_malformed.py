"""Rows as people have them, and as nobody has them: each is a conversation or is dropped with a reason."""

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.messages import Converter
from forgetting.corpus.prepare import prepare_corpus
from forgetting.corpus.sources import SourceCache, read_source, resolve_source
from forgetting.corpus.trees import trees_of
from forgetting.errors import UserError

ROLES = ["user", "assistant", "system", "human", "gpt", "prompter", " User ", "tool", "", 3, True, None, ["user"]]
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just("\ud800"), st.just("text"),
    st.integers(10**400, 10**401),
)  # fmt: skip
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)
NAMES = st.sampled_from(ROLES)
TURN = st.one_of(
    ANYTHING,
    st.fixed_dictionaries({}, optional={"role": NAMES, "content": ANYTHING, "from": NAMES, "value": ANYTHING}),
    st.fixed_dictionaries({"role": NAMES, "content": st.just("text")}),
    st.fixed_dictionaries({"from": NAMES, "value": st.just("text")}),
)
TURNS = st.one_of(
    ANYTHING,
    st.lists(TURN, max_size=4),
    st.fixed_dictionaries({}, optional={"role": ANYTHING, "content": ANYTHING, "from": ANYTHING, "value": ANYTHING}),
    st.fixed_dictionaries({"role": st.lists(NAMES, max_size=3), "content": st.lists(st.just("text"), max_size=3)}),
)


def node(replies: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        ANYTHING,
        st.fixed_dictionaries(
            {"role": st.sampled_from(["prompter", "assistant", "user", "x", 3, None, ["assistant"]])},
            optional={
                "text": st.one_of(st.just("text"), ANYTHING), "rank": ANYTHING, "lang": ANYTHING, "deleted": ANYTHING,
                "review_result": ANYTHING, "replies": st.one_of(ANYTHING, st.lists(replies, max_size=3)),
            },
        ),
    )  # fmt: skip


TREE = node(node(node(node(st.none()))))


def converted(mapping: dict[str, Any], row: dict[str, Any]) -> tuple[list[Any], Counter[str]]:
    dropped: dict[str, Counter[str]] = defaultdict(Counter)
    source = Source("x.json", name="S", **mapping)
    found = list(Converter(source, list(row), "x.json", dropped, Counter()).convert(row, 0))
    return [conversation.messages for conversation in found], sum(dropped.values(), Counter())


def assert_conversation(messages: list[dict[str, Any]]) -> None:
    assert {message["role"] for message in messages} <= {"system", "user", "assistant"}
    assert any(message["role"] == "assistant" for message in messages)
    assert all(message["content"].strip() and message["content"].encode() for message in messages)


@pytest.mark.parametrize(
    "mapping", [{"messages": "m"}, {"conversations": "m"}, {"messages": "m", "source_column": "s"}]
)
@given(turns=TURNS, name=ANYTHING)
@settings(max_examples=60, deadline=None)
def test_any_messages_are_a_conversation_or_dropped(mapping: dict[str, Any], turns: Any, name: Any) -> None:
    found, reasons = converted(mapping, {"m": turns, "s": name})
    assert len(found) + reasons.total() == 1
    for messages in found:
        assert_conversation(messages)


@pytest.mark.parametrize("languages", [None, ["en"]])
@given(tree=TREE)
@settings(max_examples=60, deadline=None)
def test_any_tree_gives_conversations_or_a_reason(languages: list[str] | None, tree: Any) -> None:
    found, reasons = converted({"tree": "t", "languages": languages, "top_replies": None}, {"t": tree})
    assert bool(found) != bool(
        reasons["null tree"] + reasons["malformed tree"] + reasons["tree without a conversation"]
    )
    for messages in found:
        assert_conversation(messages)


IDENTITY = st.one_of(st.sampled_from(["a", "b", "c", "d", None]), ANYTHING)
FLAT = st.fixed_dictionaries(
    {"message_id": IDENTITY, "parent_id": IDENTITY, "text": st.one_of(st.just("text"), ANYTHING)},
    optional={"rank": ANYTHING, "replies": ANYTHING},
).flatmap(lambda row: st.sampled_from(["prompter", "assistant", 3]).map(lambda role: {**row, "role": role}))


@given(rows=st.lists(FLAT, max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_flat_messages_are_placed_or_counted(rows: list[dict[str, Any]]) -> None:
    left_out: Counter[str] = Counter()
    placed = 0
    for _, row in trees_of(rows, "parent_id", left_out):
        stack = [row["parent_id"]]
        while stack:
            placed += 1
            stack += stack.pop()["replies"]
        converted({"tree": "parent_id"}, row)
    assert placed + left_out.total() == len(rows)


def flat(identity: Any, parent: Any, role: str = "prompter") -> dict[str, Any]:
    return {"message_id": identity, "parent_id": parent, "text": "text", "role": role}


def test_what_belongs_to_no_tree_is_counted_by_reason() -> None:
    rows = [
        flat("q", None), flat("a", "q", "assistant"), flat("a", "q", "assistant"), flat("orphan", "nobody"),
        flat("round", "trip"), flat("trip", "round"), flat("self", "self"), flat(["x"], "q"), flat("y", {}),
        flat("q2", float("nan")), flat("q3", ""),
    ]  # fmt: skip
    left_out: Counter[str] = Counter()
    assert [number for number, _ in trees_of(rows, "parent_id", left_out)] == [0, 9, 10]
    assert left_out == {
        "message_id of an earlier message": 1, "message without its parent": 4, "malformed message_id or parent_id": 2,
    }  # fmt: skip


def test_a_bad_branch_of_a_tree_leaves_the_others() -> None:
    answers = [{"role": "assistant", "text": text} for text in ("good", "\ud800", 3)]
    tree = {"role": "prompter", "text": "q", "replies": [*answers, "none", {"role": "system", "text": "s"}]}
    found, reasons = converted({"tree": "t", "top_replies": None}, {"t": tree})
    assert [messages[1]["content"] for messages in found] == ["good"]
    assert reasons == {"message malformed": 4}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ({"role": ["user", "assistant"], "content": ["q"]}, "malformed messages"),
        ({"role": "user", "content": "abcd"}, "malformed messages"),
        ({"role": 3, "content": 4}, "malformed messages"),
        ({}, "no assistant turn"),
        (3, "malformed messages"),
        (True, "malformed messages"),
        ([["user", "q"], ["assistant", "a"]], "malformed messages"),
        ([{"role": "user", "content": True}], "malformed messages"),
        ([{"role": 3, "content": "q"}], "unknown role"),
    ],
)
def test_messages_of_other_shapes(messages: Any, reason: str) -> None:
    assert converted({"messages": "m"}, {"m": messages}) == ([], Counter({reason: 1}))


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
@pytest.mark.parametrize(
    "value", ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "9" * 5000, "[[[", "nul"]
)
def test_json_that_cannot_be_read_is_one_error(tmp_path: Path, name: str, value: str) -> None:
    row = f'{{"m": {value}}}'
    (tmp_path / name).write_text(f"[{row}]" if name == "x.json" else f'{{"m": []}}\n{row}\n')
    source = Source(str(tmp_path / name), name="S", messages="m")
    with pytest.raises(UserError, match="not valid JSON") as caught:
        read_source(resolve_source(source, SourceCache(tmp_path / ".sources.json")), 0)
    assert name == "x.json" or "line 2" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_one_deep_row_is_dropped_and_the_others_are_kept(tmp_path: Path) -> None:
    good = {"role": "assistant", "content": "a"}
    deep = "[" * 900 + "]" * 900  # deep, but not too deep to be read
    lines = [json.dumps({"m": [good]}), f'{{"m": [{{"role": {deep}, "content": {deep}}}]}}', f'{{"m": {deep}}}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    source = Source(str(tmp_path / "x.jsonl"), messages="m")
    corpus = prepare_corpus(CorpusConfig({"S": source}, 1, 0, 0), tmp_path / "corpora")
    assert corpus.manifest["pool"]["sources"]["S"]["dropped"] == {"malformed messages": 1, "unknown role": 1}


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("q,a,a\n1,2,3\n")
    table = pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"]), pa.array(["3"])], names=["q", "a", "a"])
    pq.write_table(table, tmp_path / "x.parquet")
    for name in ("x.csv", "x.parquet"):
        source = Source(str(tmp_path / name), name="S", prompt="{q}", response="{a}")
        with pytest.raises(UserError, match="the column 'a' is there twice"):
            read_source(resolve_source(source, SourceCache(tmp_path / ".sources.json")), 0)


def test_a_template_inserts_text_and_numbers_alone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": ["x"], "a": [b"bytes"]}), tmp_path / "x.parquet")
    source = Source(str(tmp_path / "x.parquet"), name="S", prompt="{q}", response="{a}")
    with pytest.raises(UserError, match="column 'a' holds a bytes, and a template inserts text"):
        read_source(resolve_source(source, SourceCache(tmp_path / ".sources.json")), 0)
