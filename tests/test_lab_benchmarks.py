import json
from pathlib import Path

import pytest
import torch
from lab_worlds import SMALL
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgetting.artifacts import read_json
from forgetting.cli import main
from forgetting.lab.benchmarks import BENCHMARKS, suite, task_name
from forgetting.lab.language import TASKS, build_language
from forgetting.lab.token_f1 import process_results, token_f1
from forgetting.lab.world import write_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "7"
    write_world(SMALL, folder)
    return folder


@pytest.fixture(scope="module")
def results(world: Path) -> dict:
    """The base model's, by the command line."""
    arguments = ["--suite", str(world / "suite.yaml"), "--output", str(world.parent / "results"), "--device", "cpu"]
    main(["evaluate", str(world / "base"), *arguments, "--quiet"])
    return read_json(world.parent / "results" / "results.lab.json")


def documents(world: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in (world / "tasks" / f"{task}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(world: Path) -> tuple:
    return AutoTokenizer.from_pretrained(world / "base"), AutoModelForCausalLM.from_pretrained(world / "base")


@torch.no_grad()
def next_word_logits(base: tuple, prompt: str) -> dict[str, float]:
    tokenizer, model = base
    logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1].tolist()
    return {word: logits[number] for word, number in tokenizer.get_vocab().items()}


def test_columns_of_the_suite():
    assert list(BENCHMARKS) == list(TASKS)
    assert list(suite()["columns"]) == ["Truthful", "Boolean", "Logic", "Lingual", "Math"]


def test_a_document_for_every_tested_slot(world: Path):
    language = build_language(SMALL.seed, SMALL.size)
    for task, items in language.test_items.items():
        number = len(items) if task == "lingual" else sum(len(item.asked) for item in items)
        assert len(documents(world, task)) == number


def test_gold_is_the_truth(world: Path):
    language = build_language(SMALL.seed, SMALL.size)
    truth = {
        " ".join((*item.prompt, slot.name)): slot.true
        for items in language.test_items.values()
        for item in items
        for slot in item.asked
    }
    for task in ("truthful", "boolean", "logic"):
        for document in documents(world, task):
            assert document["choices"][document["gold"]] == truth[document["prompt"]]
    for document in documents(world, "math"):
        assert document["answer"] == truth[document["prompt"]]


def test_gold_is_not_always_in_the_same_place(world: Path):
    assert {document["gold"] for document in documents(world, "logic")} == {0, 1, 2, 3}


@pytest.mark.parametrize("task", ["truthful", "boolean", "logic"])
def test_choices_are_scored_by_the_next_words_logits(world: Path, base: tuple, results: dict, task: str):
    right = []
    for document in documents(world, task):
        logits = next_word_logits(base, document["prompt"])
        best = max(document["choices"], key=lambda choice: logits[choice])
        right.append(best == document["choices"][document["gold"]])
    assert results["columns"][BENCHMARKS[task].column]["value"] == pytest.approx(100 * sum(right) / len(right))


def test_math_is_right_when_the_answer_is_the_likeliest_word(world: Path, base: tuple, results: dict):
    right = []
    for document in documents(world, "math"):
        logits = next_word_logits(base, document["prompt"])
        right.append(max(logits, key=lambda word: logits[word]) == document["answer"])
    assert results["columns"]["Math"]["value"] == pytest.approx(100 * sum(right) / len(right))


def test_lingual_is_the_f1_of_what_is_generated(world: Path, base: tuple, results: dict):
    tokenizer, model = base
    scores = []
    for document in documents(world, "lingual"):
        prompt = tokenizer(document["prompt"], return_tensors="pt")
        made = model.generate(**prompt, max_new_tokens=9, do_sample=False)[0, prompt["input_ids"].shape[1] :]
        scores.append(process_results(document, [tokenizer.decode(made, skip_special_tokens=True)])["f1"])
    assert results["columns"]["Lingual"]["value"] == pytest.approx(100 * sum(scores) / len(scores))


def test_all_documents_are_used_and_none_failed(world: Path, results: dict):
    assert results["suite"] == "lab"
    for task in BENCHMARKS:
        entry = results["tasks"][task_name(task)]
        assert (entry["status"], entry["shots"]) == ("ok", 0)
        assert entry["documents"] == entry["documents_total"] == len(documents(world, task))


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        (["a", "b"], ["a", "b"], 1.0),
        (["b", "a"], ["a", "b"], 1.0),
        (["a"], ["a", "b", "c"], 0.5),
        (["a", "a", "a"], ["a", "b"], 0.4),
        (["x"], ["a"], 0.0),
        ([], ["a"], 0.0),
    ],
)
def test_token_f1(answer: list[str], gold: list[str], expected: float):
    assert token_f1(answer, gold) == pytest.approx(expected)


def test_names_of_slots_do_not_count():
    document = {"names": ["fr", "de"], "values": ["fr_1", "de_2"]}
    assert process_results(document, ["fr fr_1 de de_2"]) == {"f1": 1.0}
    assert process_results(document, ["fr de"]) == {"f1": 0.0}
