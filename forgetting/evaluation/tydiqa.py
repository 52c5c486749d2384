"""TydiQA GoldP as the paper's repository runs it, for the task files in `configs/evaluation/tasks/`."""

import random
from pathlib import Path
from typing import Any

import datasets
import yaml
from lm_eval.api.task import ConfigurableTask
from torchmetrics.functional.text import squad
from transformers import AutoTokenizer

from forgetting.errors import UserError
from forgetting.paths import CONFIGS

HUB = ("google-research-datasets/tydiqa", "secondary_task")


def questions(
    language: str, pretrained: str, revision: str | None = None, tokenizer: str | None = None,
    data_files: dict[str, list[str]] | None = None, labels: str | None = None, num_questions: int = 100,
    num_fewshot: int = 1, num_tokens: int = 512, draw_seed: int = 42, **_: Any,
) -> dict[str, Any]:  # fmt: skip
    """Draw the questions and few-shot examples of one language, and cut them, as the published code does.

    One random stream goes through the languages in alphabetical order and draws the questions of each that has more
    than `num_questions`, then the few-shot examples of each. A context of more than `num_tokens` tokens is cut by
    encoding and decoding, which leaves the tokenizer's literal BOS in the text.

    Args:
        language: In English, as the ids of the questions begin.
        pretrained: Model whose tokenizer counts; handed over by the harness, with `revision` and `tokenizer`.
        revision: Of the tokenizer.
        tokenizer: Another tokenizer.
        data_files: Local files instead of the hub's, with its columns (id, context, question, answers).
        labels: YAML file with other wordings; None is `configs/evaluation/tydiqa_labels.yaml`.
        num_questions: Per language.
        num_fewshot: Per language.
        num_tokens: Per context.
        draw_seed: Of the draw.

    Returns:
        Splits `validation` and `train`, the latter with exactly the few-shot examples.
    """
    if data_files is None:
        source = datasets.load_dataset(*HUB)
    else:
        kind = "parquet" if str(data_files["validation"][0]).endswith(".parquet") else "json"
        source = datasets.load_dataset(kind, data_files=data_files)
    words = _labels(labels, language)
    encoder = AutoTokenizer.from_pretrained(tokenizer or pretrained, revision=revision)
    indices = _draw(source, language, num_questions, num_fewshot, draw_seed)

    def prepare(row: dict[str, Any]) -> dict[str, Any]:
        tokens = encoder.encode(row["context"])
        context = encoder.decode(tokens[:num_tokens]) if len(tokens) > num_tokens else row["context"]
        answers = row["answers"]["text"]
        return {"id": row["id"], "context": context, "question": row["question"], "answers": answers, **words}

    result: dict[str, Any] = {}
    for split, chosen in indices.items():
        result[split] = datasets.Dataset.from_list([prepare(source[split][index]) for index in chosen])
        result[split].info.download_checksums = source[split].info.download_checksums  # names the hub's commit
    return result


def _draw(source: Any, language: str, num_questions: int, num_fewshot: int, seed: int) -> dict[str, list[int]]:
    stream = random.Random(seed)
    rows: dict[str, dict[str, list[int]]] = {"validation": {}, "train": {}}
    for split, by_language in rows.items():
        for index, identifier in enumerate(source[split]["id"]):
            by_language.setdefault(identifier.split("-")[0], []).append(index)
    languages = sorted(rows["validation"])
    if language not in languages or len(rows["train"].get(language, [])) < num_fewshot:
        raise ValueError(f"TydiQA's files have no question, or too few few-shot examples, in {language}")
    drawn: dict[str, list[int]] = {}
    for name in languages:
        indices = rows["validation"][name]
        drawn[name] = stream.sample(indices, num_questions) if len(indices) > num_questions else indices
    fewshot: dict[str, list[int]] = {}
    for name in languages:
        indices = rows["train"].get(name, [])
        fewshot[name] = stream.sample(indices, min(num_fewshot, len(indices)))
    return {"validation": drawn[language], "train": fewshot[language]}


def _labels(file: str | None, language: str) -> dict[str, str]:
    path = Path(file) if file else CONFIGS / "evaluation" / "tydiqa_labels.yaml"
    if not path.is_file():
        raise UserError(f"The file of TydiQA's labels {path} does not exist.")
    words = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get(language)
    if not isinstance(words, dict) or set(words) != {"instruction", "passage", "question", "answer"}:
        raise UserError(f"{path}: {language} needs instruction, passage, question and answer, and nothing else.")
    return {key if key == "instruction" else f"{key}_label": value for key, value in words.items()}


def scores(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """SQuAD's F1 and exact match of an answer as it is, its F1 when cut at the first newline, and whether it ran on."""
    answer = results[0].strip()
    cut = answer.split("\n")[0].strip()
    whole = _squad(answer, document["answers"])
    return {
        "f1": whole["f1"],
        "f1_cut": whole["f1"] if cut == answer else _squad(cut, document["answers"])["f1"],
        "exact_match": whole["exact_match"],
        "ran_on": float(cut != answer),
    }


def _squad(answer: str, answers: list[str]) -> dict[str, float]:
    target = {"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "0"}
    result = squad([{"prediction_text": answer, "id": "0"}], [target])
    return {name: float(value) / 100 for name, value in result.items()}


class TokenStopTask(ConfigurableTask):
    """Ends an answer only at the token that is exactly a newline, or at the end of the text."""

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = config["metadata"]
        tokenizer = AutoTokenizer.from_pretrained(
            metadata.get("tokenizer") or metadata["pretrained"], revision=metadata.get("revision")
        )
        newline = tokenizer.encode("\n", add_special_tokens=False)[-1]
        ends = [newline] if tokenizer.eos_token_id is None else [newline, tokenizer.eos_token_id]
        generation = {**config["generation_kwargs"], "until": [], "eos_token_id": ends}
        changed = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config={**changed, "generation_kwargs": generation})
