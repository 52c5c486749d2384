"""The run folders: which seeds of an experiment are there, and what they measured."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.evaluation.naming import base_folder, results_name
from forgetting.reporting.spec import TableSpec


@dataclass(frozen=True)
class RunFolders:
    """Results of one variant under one evaluation protocol.

    Attributes:
        root: Folder of the runs.
        variant: `published` reads `runs/<experiment>@published`; None the experiments as they stand.
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
        folders = self.experiment(name).glob("seed-*")
        return sorted(
            (path for path in folders if path.is_dir()), key=lambda path: int(path.name.removeprefix("seed-"))
        )

    def results(self, folders: list[Path], spec: TableSpec) -> list[dict[str, Any]]:
        """Results for a table, of those of `folders` that were evaluated.

        Raises:
            UserError: Results are of another suite than the table's, or not as `evaluate` writes them.
        """
        if spec.suite is None:
            raise UserError(f"The table {spec.name} shows results and names no suite: give it `suite:`.")
        found = []
        for folder in folders:
            path = folder / results_name(spec.suite, self.protocol)
            if not path.is_file():
                continue
            content = read_json(path)
            if content.get("format") != 1 or "columns" not in content:
                raise UserError(f"{path} is not a result of `python -m forgetting evaluate` that this version reads.")
            if content["suite"] != spec.suite:
                raise UserError(
                    f"{path} is of the suite {content['suite']}, the table needs {spec.suite}. "
                    f"Evaluate again: python -m forgetting evaluate {folder} --suite {spec.suite_argument}"
                )
            found.append({**content, "path": str(path)})
        return found

    def corpus_counts(self) -> dict[str, dict[str, int]]:
        """Samples a source in each split of the corpus; empty where none is given."""
        if self.corpus is None:
            return {}
        splits = read_json(self.corpus / "manifest.json")["splits"]
        return {
            split: {source: counts["samples"] for source, counts in content["sources"].items()}
            for split, content in splits.items()
        }

    def costs(self, folder: Path, stage: str) -> list[dict[str, Any]]:
        """Entries of a stage in a folder's `cost.json`, one a launch."""
        path = folder / "cost.json"
        return [entry for entry in read_json(path, list) if entry["stage"] == stage] if path.is_file() else []
