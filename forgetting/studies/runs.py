"""The run folders: which seeds of an experiment are there, and what they measured."""

from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.evaluation.naming import base_folder, results_name
from forgetting.run_folder import read_costs, seed_folders
from forgetting.studies.spec import TableSpec


@dataclass(frozen=True)
class RunFolders:
    """Results of one variant under one evaluation protocol.

    Attributes:
        root: Folder of the runs.
        variant: `file-order` reads `runs/<experiment>@file-order`; None the experiments as they stand.
        protocol: Of the evaluation: `corrected`, `published` or `token_stop`.
        corpus: Folder of a prepared corpus, for tables that count one.
    """

    root: Path = Path("runs")
    variant: str | None = None
    protocol: str = "corrected"
    corpus: Path | None = None

    def experiment(self, name: str) -> Path:
        """The folder that holds an experiment's seeds."""
        return self.root / (name if self.variant is None else f"{name}@{self.variant}")

    def backbone(self, target: str) -> Path:
        """The folder of the evaluation of a model itself."""
        return self.root / base_folder(target)

    def seeds(self, name: str) -> list[Path]:
        """Seed folders of an experiment that are there, in the order of their numbers."""
        return seed_folders(self.experiment(name))

    def result(self, folder: Path, spec: TableSpec) -> dict[str, Any] | None:
        """The result of a folder for a table, with its `path`; None where it was not evaluated.

        Raises:
            UserError: The result is of another suite than the table's, or not as `evaluate` writes it.
        """
        if spec.suite is None:
            raise UserError(f"The table {spec.name} shows results and names no suite: give it `suite:`.")
        path = folder / results_name(spec.suite, self.protocol)
        if not path.is_file():
            return None
        again = f"Evaluate again: python -m forgetting evaluate {folder} --suite {spec.suite_argument}"
        content = read_json(path, dict, ("suite", "columns", "average", "tasks", "target", "versions"), again)
        if not _is_result(content):
            raise UserError(f"{path} is not as `evaluate` writes it: it is damaged, or of another version. {again}")
        if content["suite"] != spec.suite:
            raise UserError(f"{path} is of the suite {content['suite']}, the table needs {spec.suite}. {again}")
        return {**content, "path": str(path)}

    def corpus_counts(self) -> dict[str, dict[str, int]]:
        """Samples per source in each split of the corpus; empty where none is given.

        Raises:
            UserError: The folder holds no corpus, or its manifest is not as `prepare` writes it.
        """
        if self.corpus is None:
            return {}
        path = self.corpus / "manifest.json"
        remedy = "Give --corpus the folder that `python -m forgetting prepare` prints, or remove it and prepare again."
        if not path.is_file():
            raise UserError(f"There is no corpus in {self.corpus}: it has no manifest.json. {remedy}")
        splits = read_json(path, dict, ("splits",), remedy)["splits"]
        try:
            return {
                split: {source: int(counts["samples"]) for source, counts in splits[split]["sources"].items()}
                for split in ("train", "reference")
            }
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(f"{path} does not say how many samples each source gave. {remedy}") from None

    def costs(self, folder: Path, stage: str) -> list[dict[str, Any]]:
        """Entries of a stage in a folder's `cost.json`; their seconds add up.

        Raises:
            UserError: The file is not as the stages write it.
        """
        return [entry for entry in read_costs(folder) if entry["stage"] == stage]


def _is_result(content: dict[str, Any]) -> bool:
    """Whether what the table reads of a result has the shape that `evaluate` gives it."""
    columns, tasks, average = content["columns"], content["tasks"], content["average"]
    return (
        all(isinstance(content[key], dict) for key in ("columns", "tasks", "target", "versions"))
        and isinstance(content["versions"].get("lm_eval"), str)
        and isinstance(average, (int, float, NoneType))
        and all(isinstance(task, dict) and "status" in task for task in tasks.values())
        and all(
            isinstance(column, dict)
            and isinstance(column.get("value", ""), (int, float, NoneType))
            and isinstance(column.get("documents"), int)
            and isinstance(column.get("tasks"), list)
            and set(column["tasks"]) <= tasks.keys()
            for column in columns.values()
        )
    )
