"""`new`: from a user's files to experiments that run as they are."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, AutoTokenizer

from forgetting.arguments import base_files, merged, read_yaml
from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.studies.new_files import Setup
from forgetting.studies.plan import Plan
from forgetting.studies.results import RunFolders
from forgetting.studies.spec_file import load_study

ROWS = [
    {"instruction": f"say {i}", "input": "loud" * (i % 2), "output": f"it is {i}", "id": f"n{i}"} for i in range(60)
]
FILES = {"base.yaml", "reference.yaml", "full.yaml", "ignoring.yaml", "forgetting.yaml", "study.yaml"}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def model(tiny_llama: Path, empty_folder: None) -> str:
    Path("tiny").symlink_to(tiny_llama)
    return "tiny"


def write_rows(name: str, rows: list[dict[str, Any]] = ROWS) -> str:
    Path(name).write_text("\n".join(map(json.dumps, rows)))
    return name


def written() -> set[str]:
    return {path.name for path in Path().rglob("*") if path.suffix == ".yaml" or "experiments" in path.parts}


def test_what_is_written_is_short_shares_one_base_and_is_a_study(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["new", write_rows("mine.jsonl", [*ROWS, ROWS[0], {**ROWS[1], "output": ""}]), "--model", model])
    folder = Path("experiments/mine")
    assert {path.name for path in folder.iterdir()} == FILES
    for name in FILES - {"base.yaml", "study.yaml"}:
        content = yaml.safe_load((folder / name).read_text())
        assert content["base"] == "experiments/mine/base.yaml"
        assert not {"corpus", "max_length"} & content["data"].keys()
    config = merged([folder / "forgetting.yaml"])
    corpus = config["data"]["corpus"]
    assert corpus["num_train"] + corpus["num_reference"] + corpus["num_validation"] == 60  # all that are distinct
    assert min(corpus["num_train"], corpus["num_reference"], corpus["num_validation"]) > 0
    assert config["data"]["max_length"] == 256  # the model's positions
    assert config["model"]["backbone"] == "tiny"
    assert config["data"]["batch_size"] == 24  # control: the paper's is below
    assert (folder / "base.yaml").read_text().count(r'prompt: "{instruction}\n\n{input}"') == 1
    shown = capsys.readouterr().out
    assert "mine.jsonl: 62 rows, read as Alpaca" in shown
    assert "61 examples; dropped rows: empty response (1)" in shown
    assert "not in the corpus, as no mapping names them: id (62 rows)" in shown
    assert "--- prompt\n<|user|>\nsay 0\n<|assistant|>\n--- response\nit is 0</s>\n---" in shown
    length = len("<|user|>\nsay 0\n<|assistant|>\nit is 0") + 2  # bytes, BOS and EOS
    assert f"It has {length} tokens, {len('it is 0') + 1} to predict." in shown
    assert "python -m forgetting table experiments/mine/study.yaml --run\n" in shown

    study = load_study(folder / "study.yaml")
    plan = Plan(study, RunFolders(Path("runs"), "corrected", None, None), seeds=[0])
    stages = [job.stage for job in plan.pending()]
    assert stages.count("fit") == 3
    assert stages.count("reference") == stages.count("score") == stages.count("prepare") == 1


def test_the_rows_that_a_study_proposes_are_rows(model: str) -> None:
    main(["new", write_rows("mine.jsonl"), "--model", model])
    written = Path("experiments/mine/study.yaml")
    proposed = re.sub(
        r"^( +)# (?=- [{n]| +(run|set|data\.\w+):)", r"\1", written.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    written.write_text(proposed, encoding="utf-8")
    study = load_study(written)
    assert [row.name for row in study.groups[0].rows[3:]] == [
        "Forgetting, ρ = 0.5",
        "Ignoring, prompt fit without boilerplate",
    ]
    plan = Plan(study, RunFolders(Path("runs"), "corrected", None, None), seeds=[0])
    stages = [job.stage for job in plan.pending()]
    assert stages.count("fit") == 5
    assert stages.count("reference") == stages.count("score") == 1  # one store for both scores


def test_the_same_files_are_written_again_and_nothing_is_overwritten(model: str) -> None:
    command = ["new", write_rows("mine.jsonl"), "--model", model]
    main([*command, "--folder", "uno"])
    main([*command, "--folder", "duo"])
    for name in FILES:
        one, two = (Path("experiments") / folder / name for folder in ("uno", "duo"))
        assert one.read_text().replace("uno", "duo") == two.read_text()
    Path("experiments/uno/base.yaml").write_text("edited")
    with pytest.raises(UserError, match=r"experiments/uno exists already, and nothing is overwritten"):
        main([*command, "--folder", "uno"])
    assert Path("experiments/uno/base.yaml").read_text() == "edited"


def test_what_was_written_runs(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["new", write_rows("mine.jsonl"), "--model", model])
    main(["prepare", "--config", "experiments/mine/forgetting.yaml"])
    assert "| mine | 48 (100.00%) | 9 (100.00%) | 3 (100.00%) |" in capsys.readouterr().out
    main(["fit", "--config", "experiments/mine/full.yaml", "--run.root", "runs"])
    saved = Path("runs/mine/full/seed-0/fit.yaml")
    assert saved.with_name("adapter").is_dir()
    Path("experiments/mine").rename("experiments/moved")
    assert len(base_files(["--config", str(saved)])) == 1  # a saved configuration is whole without its base


def test_two_at_once_do_not_both_say_that_they_wrote_the_folder(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def faster(setup: Setup) -> dict[str, str]:
        setup.folder.mkdir(parents=True)
        (setup.folder / "base.yaml").write_text("theirs")
        return {"base.yaml": "ours"}

    monkeypatch.setattr("forgetting.studies.new_files.files_of", faster)
    with pytest.raises(UserError, match=r"experiments/mine cannot be replaced"):
        main(["new", write_rows("mine.jsonl"), "--model", model])
    assert Path("experiments/mine/base.yaml").read_text() == "theirs"


@pytest.mark.parametrize("name", ["1e5", "12", "null", "true", "nan", "1_0"])
def test_a_file_whose_name_is_a_value_of_yaml_is_a_source_by_its_name(model: str, name: str) -> None:
    main(["new", write_rows(f"{name}.jsonl"), "--model", model])
    (source,) = read_yaml(Path(f"experiments/{name}/base.yaml"))["data"]["corpus"]["sources"]
    assert source == name
    assert read_yaml(Path(f"experiments/{name}/study.yaml"))["title"] == name


def test_several_files_are_sources_of_their_own(model: str) -> None:
    Path("chats").mkdir()
    chat = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    write_rows("chats/mine.jsonl", [{"messages": chat}])
    Path("odd.csv").write_text("Frage: kurz;Antwort\n" + "\n".join(f"was {i};das {i}" for i in range(20)))
    main(["new", write_rows("mine.jsonl"), "odd.csv", "chats/*.jsonl", "chats", "--model", model, "--folder", "a/b"])
    sources = yaml.safe_load(Path("experiments/a/b/base.yaml").read_text())["data"]["corpus"]["sources"]
    assert {name: source["path"] for name, source in sources.items()} == {
        "mine": "mine.jsonl", "odd": "odd.csv", "chats": "chats/*.jsonl", "chats-2": "chats",
    }  # fmt: skip
    assert sources["odd"]["prompt"] == "{Frage: kurz}"
    assert yaml.safe_load(Path("experiments/a/b/full.yaml").read_text())["base"] == "experiments/a/b/base.yaml"


def test_a_model_that_is_not_here_is_not_asked_for(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_here(name: str, **options: Any) -> None:
        assert options["local_files_only"], "the hub would be asked"
        raise OSError(name)

    monkeypatch.setattr(AutoConfig, "from_pretrained", not_here)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", not_here)
    main(["new", write_rows("mine.jsonl"), "--model", "org/not-here"])
    shown = capsys.readouterr().out
    assert "--- response\nit is 0<EOS>\n" in shown
    assert "The tokenizer of org/not-here is not on this machine" in shown
    assert "max_length" not in Path("experiments/mine/base.yaml").read_text()


def test_data_cannot_steer_the_terminal(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"\x1b[2Jq{i}", "answer": "a\x07", "\x1bnote": "x"} for i in range(20)]
    main(["new", write_rows("mine.jsonl", rows), "--model", model])
    assert not set(capsys.readouterr().out) & set("\x1b\x07")
    with pytest.raises(UserError, match="looks like the prompt") as caught:
        main(["new", write_rows("other.jsonl", [{"\x1bx\n": "\x07", "y": "z"}]), "--model", model])
    assert not set(str(caught.value)) & set("\x1b\x07")


NUMBERS = range(20)
CHATS = [[{"role": "user", "content": f"ask {i}"}, {"role": "assistant", "content": f"say {i}"}] for i in NUMBERS]


def json_lines(rows: Iterable[Any]) -> str:
    return "\n".join(map(json.dumps, rows))


def alpaca(i: int, **more: Any) -> dict[str, Any]:
    return {"instruction": f"ask {i}", "input": "", "output": f"say {i}", **more}


FORMATS: dict[str, tuple[str, str, list[str], dict[str, Any]]] = {
    "Alpaca": (
        "x.json", json.dumps([alpaca(i) for i in NUMBERS]), [],
        {"prompt": "{instruction}\n\n{input}", "prompt_without_input": "{instruction}", "response": "{output}"},
    ),
    "Alpaca's columns with history": (
        "x.jsonl", json_lines(alpaca(i, history=[["before", "then"]] if i else []) for i in NUMBERS), [],
        {"prompt": "{instruction}\n\n{input}", "prompt_without_input": "{instruction}", "response": "{output}",
         "history": "history"},
    ),
    "ShareGPT": (
        "x.jsonl",
        json_lines(
            {"conversations": [{"from": "human", "value": f"ask {i}"}, {"from": "gpt", "value": f"say {i}"}]}
            for i in NUMBERS
        ),
        [], {"conversations": "conversations"},
    ),
    "LIMA": (
        "x.jsonl", json_lines({"conversations": [f"ask {i}", f"say {i}"], "source": "x"} for i in NUMBERS), [],
        {"messages": "conversations"},
    ),
    "contents in parts": (
        "x.jsonl",
        json_lines(
            {"messages": [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat]}
            for chat in CHATS
        ),
        [], {"messages": "messages"},
    ),
    "JSON text": (
        "x.jsonl", json_lines({"messages": json.dumps(chat)} for chat in CHATS), [], {"messages": "messages"},
    ),
    "capitals": (
        "x.jsonl",
        json_lines(
            {"messages": [{"Role": turn["role"].upper(), "Content": turn["content"]} for turn in chat]}
            for chat in CHATS
        ),
        [], {"messages": "messages"},
    ),
    "odd names": (
        "x.csv",
        "Ticket ID,Customer Question: long,Our Reply (EN)\n" + "\n".join(f'{i},"ask {i}",say {i}' for i in NUMBERS),
        [], {"prompt": "{Customer Question: long}", "response": "{Our Reply (EN)}"},
    ),
    "semicolons": (
        "x.csv", "question;answer\n" + "\n".join(f'"ask {i}";say {i}' for i in NUMBERS), [],
        {"prompt": "{question}", "response": "{answer}"},
    ),
    "TSV without a header": (
        "x.tsv", "\n".join(f"t{i}\task {i}\tsay {i}" for i in NUMBERS),
        ["--column-names", "title", "question", "answer"],
        {"column_names": ["title", "question", "answer"], "prompt": "{question}", "response": "{answer}"},
    ),
    "given templates": (
        "x.tsv", "\n".join(f"ask\t{i}\tsay {i}" for i in NUMBERS),
        ["--column-names", "t", "x", "y", "--prompt", r"{t}\n{x}", "--response", "{y}"],
        {"column_names": ["t", "x", "y"], "prompt": "{t}\n{x}", "response": "{y}"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "options", "source"), FORMATS.values(), ids=FORMATS)
def test_a_usual_file_is_read_as_it_is_meant(
    model: str, name: str, content: str, options: list[str], source: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(content)
    main(["new", name, "--model", model, *options])
    corpus = yaml.safe_load(Path("experiments/x/base.yaml").read_text())["data"]["corpus"]
    assert corpus["sources"] == {"x": {"path": name, **source}}
    shown = capsys.readouterr().out
    assert f"{name}: 20 rows, read as " in shown
    assert "20 distinct examples" in shown
    assert "say 0</s>\n---\n" in shown
    assert "ask" in shown.split("--- prompt")[1].split("--- response")[0]


QA = "".join(f'{{"q": "x{i}", "a": "y"}}\n' for i in NUMBERS)
TOOL = {"role": "tool", "content": "x"}


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("x.jsonl", QA + '{"q": \n' + QA, [], r"x\.jsonl, line 21: not valid JSON \(Expecting value at column 6 "),
        ("x.jsonl", "", [], r"the file x\.jsonl is empty"),
        ("x.json", "[]", [], r"has no rows"),
        ("x.jsonl", '{"q": "x", "a": "y"}\n' * 20, [], r"1 distinct examples; at least 10"),
        ("x.csv", "u;v\n" + "1;2\n" * 20, [], r"no column that looks like the prompt"),
        ("x.csv", "question,answer\nx,y\nx,y,z\n", [], r"line 3: found 3 fields between commas, expected 2"),
        ("x.tsv", "u v\tw\n" * 20, [], r"--prompt '{u v}' --response '{w}'\n.*--column-names names the columns"),
        ("x.jsonl", '{"q": "x", "a": ""}\n' * 20, [], r"looks like the response"),
        (
            "x.jsonl",
            json_lines({"messages": [*chat, TOOL]} for chat in CHATS),
            [],
            r"(?s)messages: \[{.*\(no conversation: unknown role\).*by system, user and assistant",
        ),
        ("x.jsonl", QA, ["--messages", "q"], r"malformed messages \(20\)"),
        ("x.jsonl", QA, ["--prompt", "{z}"], r"no column 'z'\. The columns are 'q', 'a'"),
        ("x.jsonl", QA, ["--prompt", "{q"], r"is not valid: '{' names no column"),
        ("x.csv", "q,a\nx,y\n", ["--column-names", "q", "a"], r"first line is a header"),
        ("x.txt", "hello", [], r"format of x\.txt is not clear"),
        ("x.jsonl", QA, ["--folder", "../x"], r"a name below experiments/ was expected"),
        ("x.jsonl", QA, ["--folder", ".x"], r"a name below experiments/ was expected"),
        ("x.jsonl", QA, ["--model", "./gone"], r"no model folder"),
    ],
)
def test_nothing_is_written_where_something_is_wrong(
    model: str, name: str, content: str, options: list[str], message: str
) -> None:
    Path(name).write_text(content)
    with pytest.raises(UserError, match=message):
        main(["new", name, *([] if "--model" in options else ["--model", model]), *options])
    assert written() == set()
    assert not Path("corpora").exists()


def test_what_is_missing_is_said(model: str) -> None:
    with pytest.raises(UserError, match=r"the file gone\.jsonl does not exist"):
        main(["new", "gone.jsonl", "--model", model])
    with pytest.raises(UserError, match=r"no file or folder org/data .*docs/corpus\.md"):
        main(["new", "org/data", "--model", model])
    with pytest.raises(UserError, match=r"needs a base model: --model"):
        main(["new", write_rows("mine.jsonl")])


def test_a_folder_is_no_configuration_and_that_of_a_run_is_named() -> None:
    Path("runs/a/seed-0").mkdir(parents=True)
    with pytest.raises(UserError, match=r"^runs/a is a folder, and a configuration file was expected\.$"):
        read_yaml(Path("runs/a"))
    Path("runs/a/seed-0/fit.yaml").touch()
    with pytest.raises(UserError, match=r"expected; the configuration of that run is runs/a/seed-0/fit\.yaml\.$"):
        read_yaml(Path("runs/a/seed-0"))


def test_a_base_of_ones_own_is_found_from_the_current_folder(tmp_path: Path) -> None:
    Path("e.yaml").write_text("base: shared[1]/base.yaml\n")
    with pytest.raises(
        UserError, match=r"no base configuration shared\[1\]/base\.yaml \(from .*\), which e\.yaml names"
    ):
        base_files(["fit", "--config", "e.yaml"])
    Path("shared[1]").mkdir()
    Path("shared[1]/base.yaml").write_text("data: {batch_size: 7}\n")
    assert base_files(["fit", "--config", "e.yaml"])[1:] == [Path("shared[1]/base.yaml")]
    assert merged([Path("e.yaml")])["data"]["batch_size"] == 7
    Path("shared[1]/base.yaml").write_text("base: lab\n")
    with pytest.raises(UserError, match=r"names a base itself: only an experiment has one"):
        base_files(["fit", "--config", "e.yaml"])


def test_a_base_whose_path_looks_like_a_pattern_is_not_left_out() -> None:
    from jsonargparse import capture_parser

    from forgetting.cli import build_cli

    Path("shared[1]").mkdir()
    Path("shared[1]/base.yaml").write_text("data: {batch_size: 7}\n")
    Path("e.yaml").write_text("base: shared[1]/base.yaml\n")
    arguments = ["fit", "--config", "e.yaml"]
    parser = capture_parser(lambda: build_cli(arguments))
    assert parser.parse_args(arguments).fit.data.batch_size == 7
