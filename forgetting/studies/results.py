"""The run folders: the results of a run, its metrics and its times."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.evaluation.naming import results_name
from forgetting.evaluation.results import read_results
from forgetting.evaluation.suite import load_suite, read_mapping, suite_path
from forgetting.run_folder import read_costs
from forgetting.studies.agreement import adapter_problem


@dataclass(frozen=True)
class RunFolders:
    """Results under one evaluation protocol.

    Attributes:
        root: Folder of the runs.
        protocol: Of the evaluation: `corrected`, `published` or `token_stop`.
        corpora: Folder of prepared corpora; None leaves it to the configuration.
        corpus: Folder of a prepared corpus, for tables that count one.
    """

    root: Path = Path("runs")
    protocol: str = "corrected"
    corpora: Path | None = None
    corpus: Path | None = None

    def result(self, folder: Path, suite: str) -> dict[str, Any] | None:
        """The result of a folder, with its `path`; None where it was not evaluated.

        Args:
            folder: Of a run or of a base model's results.
            suite: Name or file.

        Raises:
            UserError: The result is of another suite of that name, or not as `evaluate` writes it.
        """
        name = suite_name(suite)
        if name is None:
            return None
        path = folder / results_name(name, self.protocol)
        if not path.is_file():
            return None
        again = f"Evaluate again: {self.command(folder, suite)}"
        content = read_results(path, again)
        if not _has_numbers(content):
            raise UserError(f"{path} is not as `evaluate` writes it: it is damaged, or of another version. {again}")
        if content["suite"] != name:
            raise UserError(f"{path} is of the suite {content['suite']}, the table needs {name}. {again}")
        return {**content, "path": str(path)}

    def command(self, folder: Path, suite: str) -> str:
        """The command that evaluates a run."""
        protocol = "" if self.protocol == "corrected" else f" --protocol {self.protocol}"
        return f"python -m forgetting evaluate {folder} --suite {suite}{protocol}"

    def whole_result(self, folder: Path, suite: str) -> Path | None:
        """The results file where every column has a value and is of the adapter in the folder; else None."""
        try:
            result = self.result(folder, suite)
        except UserError:  # damaged: evaluating again says so, or writes it anew
            return None
        if result is None or any(column["value"] is None for column in result["columns"].values()):
            return None
        return None if adapter_problem(result, folder) else Path(result["path"])

    def suite_files(self, suite: str) -> tuple[Path, ...]:
        """The file of a suite and those of its tasks; none of a suite that is not there yet."""
        path = suite_path(suite)
        if not path.is_file():
            return ()
        folders = [Path(folder) for folder in load_suite(suite).include_path]  # the same under every protocol
        return (path, *(task for folder in folders for task in sorted(folder.glob("*.yaml"))))

    def metric(self, folder: Path, name: str) -> float | None:
        """The last value of a column of a run's `metrics.csv`; None where there is none."""
        path = folder / "metrics.csv"
        if not path.is_file():
            return None
        text = path.read_text(encoding="utf-8", errors="replace")
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # a killed run may leave its last row in part
        values = [value for row in rows if (value := row.get(name))]
        try:
            return float(values[-1]) if values else None
        except ValueError:
            raise UserError(
                f"{path} has {values[-1]!r} as {name}: it is damaged. Move {folder} away and run again."
            ) from None

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


def minutes(folder: Path, stage: str, devices: set[str] | None = None) -> float | None:
    """Minutes that a stage took, over all its launches; None where nothing says it.

    Args:
        folder: Of the run.
        stage: As `cost.json` calls it.
        devices: The devices that it took them on are added.

    Raises:
        UserError: The file is not as the stages write it.
    """
    entries = [entry for entry in read_costs(folder) if entry["stage"] == stage]
    if devices is not None:
        devices |= {entry["device"] for entry in entries}
    return math.fsum(entry["seconds"] for entry in entries) / 60 if entries else None


def suite_name(suite: str) -> str | None:
    """The name that a suite's file gives it, which its results are found by; None where there is no such file."""
    path = suite_path(suite)
    return str(read_mapping(path).get("name", path.stem)) if path.is_file() else None


def _has_numbers(content: dict[str, Any]) -> bool:
    """Whether a result holds the numbers that a table shows, in the shape that `evaluate` gives them."""
    number = (int, float, NoneType)
    return (
        isinstance(content.get("average", ""), number)
        and isinstance(content.get("versions"), dict)
        and isinstance(content["versions"].get("lm_eval"), str)
        and all(
            isinstance(column.get("value", ""), number)
            and isinstance(column.get("documents"), int)
            and set(column["tasks"]) <= content["tasks"].keys()
            for column in content["columns"].values()
        )
    )
