"""`evaluate --apply-chat-template`: the harness's prompts and numbers, never mixed with those without it."""

import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from evaluation_files import results_file, task_records, write_bigram_model, write_local_tasks
from lm_eval.tasks import TaskManager
from test_evaluation_run import write_run
from transformers import AutoTokenizer

from forgetting.cli import main
from forgetting.errors import UserError
from forgetting.evaluation.naming import results_name

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<assistant>{% endif %}"
FEW_SHOT: dict[str, Any] = {"num_fewshot": 1, "fewshot_split": "test"}


def write_template(model: Path, folder: Path, template: str) -> None:
    """The model's tokenizer with a chat template, into `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bigram_model(tmp_path_factory.mktemp("base") / "bigram")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = write_bigram_model(tmp_path_factory.mktemp("chat") / "bigram")
    write_template(model, model, TEMPLATE)
    return model


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_tasks(tmp_path_factory.mktemp("tasks"), ["t"], {"t": FEW_SHOT})


def evaluate(target: Path, tasks: Path, output: Path, *options: str) -> None:
    arguments = ["--include-path", str(tasks), "--batch-size", "4", "--device", "cpu", "--output", str(output)]
    main(["evaluate", str(target), "--tasks", "t", *arguments, "--samples", "--quiet", *options])


def prompts(folder: Path) -> list[str]:
    return [record["prompt"][0] for record in task_records(folder, "t")]


def test_the_prompts_are_those_of_the_harness(tmp_path: Path, chat: Path, tasks: Path) -> None:
    evaluate(chat, tasks, tmp_path / "ours", "--apply_chat_template")
    simple_evaluate: Any = lm_eval.simple_evaluate
    theirs = simple_evaluate(
        "hf", f"pretrained={chat}", ["t"], batch_size=4, device="cpu", apply_chat_template=True,
        fewshot_as_multiturn=True, task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        random_seed=42, numpy_random_seed=42, torch_random_seed=42, fewshot_random_seed=42,
    )  # fmt: skip
    samples = sorted(theirs["samples"]["t"], key=lambda sample: sample["doc_id"])
    assert prompts(tmp_path / "ours") == [sample["arguments"][0][0] for sample in samples]
    assert prompts(tmp_path / "ours")[0].count("<user>") == 2, "the few-shot example is a turn"
    ours = json.loads(results_file(tmp_path / "ours").read_text())["tasks"]["t"]["metrics"]["acc"]
    assert ours == theirs["results"]["t"]["acc,none"]


def test_results_with_and_without_are_never_mixed(
    tmp_path: Path, chat: Path, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two files and two identities; what was finished with one is not kept for the other, and is for itself."""
    folder = tmp_path / "out"
    plain, templated = (folder / results_name("tasks=t", "corrected", chat=which) for which in (False, True))
    evaluate(chat, tasks, folder)
    before = plain.read_text()
    evaluate(chat, tasks, folder, "--apply-chat-template")
    out = capsys.readouterr().out
    assert "(kept)" not in out
    assert f"with the chat template → {templated}" in out
    assert plain.read_text() == before
    contents = [json.loads(file.read_text()) for file in (plain, templated)]
    assert [content["apply_chat_template"] for content in contents] == [False, True]
    assert contents[0]["tasks"]["t"]["identity"] != contents[1]["tasks"]["t"]["identity"]
    evaluate(chat, tasks, folder, "--apply-chat-template")
    assert "(kept)" in capsys.readouterr().out
    evaluate(chat, tasks, tmp_path / "one.json")
    evaluate(chat, tasks, tmp_path / "one.json", "--apply-chat-template")
    assert "held another evaluation (chat template False → True" in capsys.readouterr().out


def test_another_template_is_another_identity(tmp_path: Path, chat: Path, tasks: Path) -> None:
    evaluate(chat, tasks, tmp_path / "a", "--apply-chat-template")
    model = write_bigram_model(tmp_path / "model")
    write_template(model, model, TEMPLATE.replace("<", "["))
    evaluate(model, tasks, tmp_path / "b", "--apply-chat-template")
    of_both = [json.loads(results_file(tmp_path / name).read_text())["tasks"]["t"] for name in "ab"]
    assert of_both[0]["identity"] != of_both[1]["identity"]


def test_compare_takes_those_that_are_asked_for(tmp_path: Path, chat: Path, base: Path, tasks: Path) -> None:
    evaluate(chat, tasks, tmp_path / "a", "--apply-chat-template")
    evaluate(base, tasks, tmp_path / "b")
    sides = [str(tmp_path / "a"), str(tmp_path / "a")]
    main(["compare", *sides, "--apply-chat-template", "--output", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["apply_chat_template"] is True
    with pytest.raises(UserError, match=r"no results .* of the protocol corrected of .*a"):
        main(["compare", *sides])
    with pytest.raises(UserError, match=r"of the protocol corrected with the chat template of .*b"):
        main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--apply-chat-template"])


def test_a_model_without_a_template_is_refused(tmp_path: Path, base: Path, tasks: Path) -> None:
    with pytest.raises(UserError, match=r"--apply-chat-template: the tokenizer of .*bigram has no chat template"):
        evaluate(base, tasks, tmp_path / "out", "--apply-chat-template")
    assert not (tmp_path / "out").exists()


def test_a_run_that_carries_its_tokenizer_is_evaluated_in_its_template(
    tmp_path: Path, base: Path, chat: Path, tasks: Path
) -> None:
    run = write_run(tmp_path / "run", base)
    with pytest.raises(UserError, match="has no chat template"):
        evaluate(run, tasks, tmp_path / "none", "--apply-chat-template")
    write_template(base, run / "adapter", TEMPLATE.replace("<{{", "<own {{"))
    evaluate(run, tasks, tmp_path / "own", "--apply-chat-template")
    assert prompts(tmp_path / "own")[0].startswith("<own user>")
    other = write_run(tmp_path / "other", chat)
    evaluate(other, tasks, tmp_path / "base", "--apply-chat-template")
    assert prompts(tmp_path / "base")[0].startswith("<user>")
