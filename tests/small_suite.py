"""A suite of one task on a local file, next to a small experiment."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

SUITE = """
name: small
batch_size: 8
dtype: float32
include_path: [tasks]
columns: {Sums: {tasks: [sums], metric: acc}}
"""
TASK = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: tasks/sums.jsonl}}
test_split: test
num_fewshot: 0
output_type: loglikelihood
doc_to_text: question
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write_suite(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `small.yaml`, its task, and the task's rows, each with a question and an answer."""
    (folder / "small.yaml").write_text(SUITE)
    (folder / "tasks").mkdir()
    (folder / "tasks/sums.yaml").write_text(TASK)
    (folder / "tasks/sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
