"""Small files in the benchmarks' real formats, and a model that says what it is told to."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from conftest import byte_tokenizer
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

LANGUAGES = ["arabic", "bengali", "english", "finnish", "indonesian", "korean", "russian", "swahili", "telugu"]


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_bigram_model(folder: Path, after_answer: str = "\n", sharpness: float = 30.0) -> Path:
    """A Llama whose next token depends on the last one only: `:` → ` ` → `7` → `after_answer` → `Q` → `Q`.

    Everything else is followed by chance. `"\\n\\n"` is a token of its own, as in LLaMA-3's vocabulary.
    """
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken("\n\n", normalized=False)])
    tokenizer.save_pretrained(folder)
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size, hidden_size=264, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=None,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    chain = [":", " ", "7", after_answer, "Q", "Q"]
    ids = [tokenizer.encode(text, add_special_tokens=False)[0] for text in chain]
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size, 264))
        model.lm_head.weight.copy_(torch.randn(size, 264, generator=torch.Generator().manual_seed(0)) / 16)
        for last, following in itertools.pairwise(ids):
            model.lm_head.weight[following, last] = sharpness / 16
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


def write_benchmarks(folder: Path) -> dict[str, dict[str, str]]:
    """Files of the nine benchmarks in the harness's columns; task → split → file, as `--data-files` takes it."""
    truthful = [
        {
            "question": f"What is {i}?",
            "mc1_targets": {"choices": [f"It is {i}.", "No one knows."], "labels": [1, 0]},
            "mc2_targets": {"choices": [f"It is {j}." for j in (i, i + 1, i + 2)], "labels": [1, 1, 0]},
        }
        for i in range(7)
    ]
    boolq = [{"question": f"is {i} even", "passage": f"About {i}.", "idx": i, "label": i % 2} for i in range(11)]
    asdiv = [
        {
            "body": f"A has {i}.",
            "question": "How many?",
            "solution_type": "Sum",
            "answer": f"{answer} (apples)",
            "formula": "x",
        }
        for i, answer in enumerate(["6", " 7", "8"])  # the harness puts no space before the answer
    ]
    arc = [
        {
            "id": str(i),
            "question": f"Which is {i}?",
            "choices": {"text": [f"the {i}", "a cat", "q"], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i in range(9)
    ]
    lambada = [{"text": f"the number of them: {'7' if i % 2 else 'cats'}"} for i in range(5)]
    arithmetic = [{"context": f"\n\nQ: What is {i} plus 2?\n\nA:", "completion": f" {i + 2}"} for i in range(8)]
    logiqa = "".join(
        f"\n{'abcd'[i % 4]}\nAll {i} are odd.Some are not.\nWhich holds?\nA.one\nB.two\nC.three\nD.{i}\n"
        for i in range(6)
    )
    (folder / "logiqa.txt").parent.mkdir(parents=True, exist_ok=True)
    (folder / "logiqa.txt").write_text(logiqa, encoding="utf-8")
    files = {
        "truthfulqa_mc2": {"validation": write_lines(folder / "truthful.jsonl", truthful)},
        "boolq": {"validation": write_lines(folder / "boolq.jsonl", boolq)},
        "logiqa_text": {"test": folder / "logiqa.txt"},
        "asdiv": {"validation": write_lines(folder / "asdiv.jsonl", asdiv)},
        "arc_challenge": {"test": write_lines(folder / "arc.jsonl", arc)},
        "lambada_openai": {"test": write_lines(folder / "lambada.jsonl", lambada)},
        "arithmetic_2da": {"validation": write_lines(folder / "arithmetic.jsonl", arithmetic)},
        "tydiqa_*": write_tydiqa(folder),
    }
    return {task: {split: str(file) for split, file in splits.items()} for task, splits in files.items()}


def write_tydiqa(folder: Path, num_validation: int = 6, num_train: int = 3) -> dict[str, Path]:
    """TydiQA's columns in nine languages; every other answer is 7."""

    def rows(split: str, number: int) -> list[dict[str, Any]]:
        return [
            {
                "id": f"{language}-{split}-{i}",
                "title": "Town",
                "context": f"Town {i} ({language}) has {7 if i % 2 else i} bridges.",
                "question": f"How many bridges has town {i}?",
                "answers": {"text": [str(7 if i % 2 else i)], "answer_start": [0]},
            }
            for i in range(number)
            for language in LANGUAGES
        ]

    return {
        "validation": write_lines(folder / "tydiqa_dev.jsonl", rows("dev", num_validation)),
        "train": write_lines(folder / "tydiqa_train.jsonl", rows("train", num_train)),
    }


def write_data_files(path: Path, files: dict[str, dict[str, str]]) -> Path:
    path.write_text(yaml.safe_dump(files), encoding="utf-8")
    return path


def write_local_tasks(folder: Path, names: Iterable[str], extra: dict[str, dict[str, Any]] | None = None) -> Path:
    """Five-choice tasks on local files, as a user writes them; the harness's index is not needed for them."""
    for number, name in enumerate(names):
        rows = [{"text": f"{name} {i}", "label": (i * i + number) % 3} for i in range(12)]
        file = write_lines(folder / f"{name}.jsonl", rows)
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(file)}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{text}}\nAnswer:",
            "doc_to_target": "label",
            "doc_to_choice": ["one", "two", "7"],
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 1.0},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**task, **(extra or {}).get(name, {})}), encoding="utf-8")
    return folder


def results_file(folder: Path) -> Path:
    """The only results file in a folder, whatever its suite."""
    (file,) = folder.glob("results.*.json")
    return file


def task_file(folder: Path, task: str) -> Path:
    """Where the task that the folder's only results file names is kept."""
    from forgetting.evaluation.naming import task_path

    entry = json.loads(results_file(folder).read_text(encoding="utf-8"))["tasks"][task]
    return task_path(folder, task, entry["identity"])


def task_records(folder: Path, task: str) -> list[dict[str, Any]]:
    """The records of a task's documents."""
    return [json.loads(line) for line in task_file(folder, task).read_text(encoding="utf-8").split("\n")[1:-1]]


def write_suite(file: Path, tasks: Iterable[str], include: Path) -> Path:
    """A suite of its file's name, with a column per task."""
    columns = {name: {"tasks": [name]} for name in tasks}
    file.write_text(yaml.safe_dump({"columns": columns, "include_path": [str(include)], "batch_size": 4}))
    return file
