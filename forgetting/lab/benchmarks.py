"""Five benchmarks over the items that fine-tuning data do not ask about, as tasks of the harness on local files."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.lab import token_f1
from forgetting.lab.language import Item, Language
from forgetting.planting.harness_task import HarnessTask

Document = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """A task of the harness.

    Attributes:
        column: Its name in tables.
        documents: The documents about an item.
        metric: What is reported.
        settings: The rest of the harness's configuration.
    """

    column: str
    documents: Callable[[Item], Iterator[Document]]
    metric: str
    settings: dict[str, Any]


def choices(item: Item) -> Iterator[Document]:
    """One document a slot: the prompt up to the slot's name, the values to choose from, and which of them is true."""
    for slot in item.asked:
        options = sorted(slot.choices)
        yield {"prompt": " ".join((*item.prompt, slot.name)), "choices": options, "gold": options.index(slot.true)}


def value(item: Item) -> Iterator[Document]:
    """One document a slot: the prompt up to the slot's name, and the value to say next."""
    for slot in item.asked:
        yield {"prompt": " ".join((*item.prompt, slot.name)), "answer": slot.true}


def whole_answer(item: Item) -> Iterator[Document]:
    """One document an item: the prompt, and all the values that the answer shall hold."""
    names, values = [slot.name for slot in item.asked], [slot.true for slot in item.asked]
    yield {"prompt": " ".join(item.prompt), "names": names, "values": values}


MULTIPLE_CHOICE = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
GENERATION = {"until": ["\n"], "max_gen_toks": 9, "do_sample": False}
BENCHMARKS = {
    "truthful": Benchmark("Truthful", choices, "acc", MULTIPLE_CHOICE),
    "boolean": Benchmark("Boolean", choices, "acc", MULTIPLE_CHOICE),
    "logic": Benchmark("Logic", choices, "acc", MULTIPLE_CHOICE),
    "lingual": Benchmark("Lingual", whole_answer, "f1", {
        "output_type": "generate_until", "doc_to_target": "{{values | join(' ')}}", "generation_kwargs": GENERATION,
    }),
    # As the harness's asdiv: correct when the gold answer is what greedy decoding says next. The harness puts no space.
    "math": Benchmark("Math", value, "acc", {"output_type": "loglikelihood", "doc_to_target": " {{answer}}"}),
}  # fmt: skip


def task_name(task: str) -> str:
    """The name of a task in the harness."""
    return f"lab_{task}"


def write_tasks(folder: Path, place: Path, language: Language) -> None:
    """Write each task's documents and configuration, and the metric that the harness does not have.

    Args:
        folder: Where to write.
        place: Where the files will lie when they are complete, as the harness shall find them.
        language: The world's.
    """
    folder.mkdir()
    for task, benchmark in BENCHMARKS.items():
        documents = [document for item in language.test_items[task] for document in benchmark.documents(item)]
        results = (token_f1, "process_results") if benchmark.metric == "f1" else None
        HarnessTask(task_name(task), documents, benchmark.metric, benchmark.settings, results=results).write(
            folder, place, task
        )


def suite() -> dict[str, Any]:
    """The suite of the five tasks, for a file that lies next to the folder `tasks`."""
    return {
        "name": "lab",
        "batch_size": 256,
        "dtype": "float32",
        "include_path": ["tasks"],
        "data_files": {task_name(task): {"test": f"tasks/{task}.jsonl"} for task in BENCHMARKS},
        "columns": {b.column: {"tasks": [task_name(t)], "metric": b.metric} for t, b in BENCHMARKS.items()},
    }
