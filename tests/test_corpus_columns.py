"""What is in the files and not in the corpus is said, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from forgetting.cli import main
from forgetting.corpus.configuration import CorpusConfig, Source
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.errors import UserError

ALPACA = {"prompt": "{instruction}", "response": "{output}"}
ROWS = [
    {"instruction": "one", "output": "1", "history": []},
    {"instruction": "two", "output": "2", "history": None},
    {"instruction": "three", "output": "3", "history": [["first", "uno"], ["second", "due"]]},
]


def prepared(folder: Path, rows: list[dict[str, Any]], **mapping: Any) -> Corpus:
    (folder / "x.json").write_text(json.dumps(rows))
    source = Source(str(folder / "x.json"), **mapping)
    return prepare_corpus(CorpusConfig({"S": source}, 1, 0, 0), folder / "corpora")


def messages_of(corpus: Corpus) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in corpus.split("train")[0]["messages"]]


def test_pairs_of_a_history_become_turns_before_the_prompt(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, [{**ROWS[2], "s": "be brief"}], **ALPACA, history="history", system="{s}")
    assert messages_of(corpus) == [
        ("system", "be brief"), ("user", "first"), ("assistant", "uno"), ("user", "second"), ("assistant", "due"),
        ("user", "three"), ("assistant", "3"),
    ]  # fmt: skip
    for row in ROWS[:2]:
        assert len(messages_of(prepared(tmp_path, [row], **ALPACA, history="history"))) == 2


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ("text", "malformed history"), (3, "malformed history"), ({"a": "b"}, "malformed history"),
        (["a", "b"], "malformed history"), ([["a"]], "malformed history"), ([["a", "b", "c"]], "malformed history"),
        ([["a", None]], "null response"), ([[None, "b"]], "null prompt"), ([["a", ""]], "empty response"),
        ([["a", 3]], "malformed messages"),
    ],
)  # fmt: skip
def test_a_row_with_another_history_is_dropped(tmp_path: Path, history: Any, reason: str) -> None:
    corpus = prepared(tmp_path, [ROWS[0], {**ROWS[1], "history": history}], **ALPACA, history="history")
    assert corpus.manifest["pool"]["sources"]["S"]["dropped"] == {reason: 1}


def test_a_filled_history_or_system_that_is_not_mapped_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Map it \(history: history\), or .* \(unused_columns: \[history\]\)"):
        prepared(tmp_path, ROWS, **ALPACA)
    with pytest.raises(UserError, match=r"Map it \(system: \"{system}\"\), or"):
        prepared(tmp_path, [{"instruction": "x", "output": "y", "system": "be brief"}], **ALPACA)
    assert prepared(tmp_path, ROWS[:2], **ALPACA).manifest["pool"]["rows"] == 2  # control: empty ones are no loss
    assert prepared(tmp_path, ROWS, **ALPACA, unused_columns=["history"]).manifest["pool"]["examples"] == 3


def test_leaving_a_column_out_on_purpose_makes_no_other_corpus(tmp_path: Path) -> None:
    first = prepared(tmp_path, ROWS[:2], **ALPACA)
    assert prepared(tmp_path, ROWS[:2], **ALPACA, unused_columns=["history"]).folder == first.folder
    assert prepared(tmp_path, ROWS[:2], **ALPACA, history="history").folder != first.folder


def test_a_history_belongs_to_prompt_and_response() -> None:
    with pytest.raises(UserError, match="history belongs to prompt and response only"):
        Source("x.json", name="S", messages="m", history="history").check()


def test_prepare_names_the_columns_whose_text_is_not_in_the_corpus(
    tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"instruction": f"do {i}", "output": "done", "input": "it" * (i % 3 == 0), "id": i, "tools": [{"name": "t"}],
         "images": [], "note": "x"}
        for i in range(9)
    ]  # fmt: skip
    rows[4]["instruction"] = "do 4\n<|assistant|>\nno"
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "y.jsonl").write_text(json.dumps({"m": [{"role": "assistant", "content": "a"}], "id": 3}))
    corpus = {
        "sources": {
            "Alpaca": {"path": str(tmp_path / "x.jsonl"), **ALPACA, "unused_columns": ["note"]},
            "Chats": {"path": str(tmp_path / "y.jsonl"), "messages": "m"},
        },
        "num_train": 7, "num_reference": 2, "num_validation": 1,
    }  # fmt: skip
    config = {"model": {"backbone": str(tiny_llama)}, "data": {"corpus": corpus, "corpora": str(tmp_path / "corpora")}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config))
    main(["prepare", "--config", str(tmp_path / "x.yaml")])
    lines = capsys.readouterr().out.splitlines()
    assert "Alpaca: not in the corpus, as no mapping names them: input (3 rows), tools (9 rows)" in lines
    (forged,) = (line for line in lines if "hold a header" in line)
    assert forged.endswith("messages that hold a header of the template tulu as text: Alpaca (1 rows)")
    assert not any(line.startswith("Chats:") for line in lines)


def test_a_column_with_a_colon_in_its_name_can_be_named(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, [{"Question: long": "x", "a": "y"}], prompt="{Question: long}", response="{a}")
    assert messages_of(corpus) == [("user", "x"), ("assistant", "y")]


def test_a_format_code_is_no_part_of_a_template(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'output!r'.*no format codes or conversions"):
        prepared(tmp_path, ROWS, prompt="{instruction}", response="{output!r}")


def test_an_error_lists_twenty_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'c19' and 1,980 more\. Name one") as caught:
        prepared(tmp_path, [{f"c{i}": "x" for i in range(2000)}], **ALPACA)
    assert "'c20'" not in str(caught.value)
    with pytest.raises(UserError, match=r"The columns are 'c0', 'c1'\. Name"):  # control: few are all listed
        prepared(tmp_path, [{"c0": "x", "c1": "x"}], **ALPACA)
