"""A task of lm-evaluation-harness on a local file: its documents, its configuration and its metric."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml


@dataclass(frozen=True)
class HarnessTask:
    """A task that is to be written.

    Attributes:
        name: Its name in the harness.
        documents: One a line of its file; each has a `prompt`.
        metric: What is reported.
        settings: The rest of the harness's configuration.
        higher_is_better: Of the metric.
        results: Module and function that compute the metric; None for one of the harness's own.
    """

    name: str
    documents: Sequence[Mapping[str, Any]]
    metric: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    higher_is_better: bool = True
    results: tuple[ModuleType, str] | None = None

    def write(self, folder: Path, place: Path, file: str | None = None) -> None:
        """Write `<file>.jsonl`, `<file>.yaml` and the module of its metric.

        Args:
            folder: Where to write.
            place: Where the files will lie when they are complete, as the harness shall find them.
            file: Name of the files; by default the task's.
        """
        file = file or self.name
        lines = "".join(json.dumps(document) + "\n" for document in self.documents)
        (folder / f"{file}.jsonl").write_text(lines, encoding="utf-8")
        configuration = {
            "task": self.name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": (place / f"{file}.jsonl").as_posix()}},
            "test_split": "test",
            "num_fewshot": 0,
            "doc_to_text": "prompt",
            **self.settings,
            "metric_list": [{
                "metric": self.metric, "aggregation": "mean", "higher_is_better": self.higher_is_better,
            }],
            "metadata": {"version": 1},
        }  # fmt: skip
        text = yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True)
        if self.results is not None:
            module, function = self.results
            source = Path(str(module.__file__))
            text += f"process_results: !function {source.stem}.{function}\n"
            (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        (folder / f"{file}.yaml").write_text(text, encoding="utf-8")
