"""Output of the harness's own command, `lm_eval --output_path … --log_samples`, for a comparison.

It writes `results_<time>.json` and `samples_<task>_<time>.jsonl`, into a subfolder that is named by the model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.evaluation.pairs import Document, Evaluation

TIME = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
RESULTS = re.compile(rf".+_({TIME})\.json")
SAMPLES = re.compile(rf"samples_(.+)_({TIME})\.jsonl")
AGAIN = "Run `lm_eval` again with the same --output_path and --log_samples."


@dataclass(frozen=True)
class HarnessOutput(Evaluation):
    """The latest evaluation of each task in a folder; an entry of `content["tasks"]` names metric, filter and file."""

    def scores(self, task: str) -> dict[Document, float]:
        """The score of each document, which is known by its number, its hash and the hash of its prompt.

        In a chat template the prompt is the model's own, and no part of what the document is known by.

        Raises:
            UserError: The metric is no mean over documents, or the file is damaged.
        """
        entry = self.content["tasks"][task]
        samples = [sample for sample in _read_lines(entry["file"]) if sample.get("filter") == entry["filter"]]
        keys = ("doc_id", "doc_hash") if entry["conditions"]["chat template"] else ("doc_id", "doc_hash", "prompt_hash")
        try:
            values: dict[Document, Any] = {
                tuple(sample[key] for key in keys): sample.get(entry["metric"]) for sample in samples
            }
        except KeyError as error:
            raise UserError(f"{entry['file']} has a line without {error}: it is of another version. {AGAIN}") from None
        if not len(values) == len(samples) == entry["documents"]:
            raise UserError(
                f"{entry['file']} holds {len(samples)} documents, {len(values)} of them different, and its results "
                f"{entry['documents']}: it is damaged. {AGAIN}"
            )
        return self.checked(task, values, entry["mean"])

    def metric(self, task: str) -> str:
        """Name of the metric that is compared, with its filter where there is one."""
        entry = self.content["tasks"][task]
        return entry["metric"] if entry["filter"] == "none" else f"{entry['metric']},{entry['filter']}"

    def conditions(self, task: str) -> dict[str, Any]:
        """What two evaluations of a task must have in common, besides their documents and prompts."""
        return super().conditions(task) | self.content["tasks"][task]["conditions"]


def _read_lines(file: Path) -> list[dict[str, Any]]:
    try:
        # Not splitlines: the harness leaves other line separators inside the strings as they are.
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, RecursionError):
        samples = []
    if not samples or not all(isinstance(sample, dict) for sample in samples):
        raise UserError(f"{file} is damaged: a JSON object per line was expected. {AGAIN}")
    return samples


def _folder(given: Path) -> Path | None:
    """The folder that holds the files: the one given or the one in it; None where there are none.

    Raises:
        UserError: There are those of several models.
    """
    if not given.is_dir():
        return None
    if _holds_output(given):
        return given
    folders = [folder for folder in sorted(given.iterdir()) if folder.is_dir() and _holds_output(folder)]
    if len(folders) > 1:
        raise UserError(f"{given} holds the output of several models: give one of {', '.join(map(str, folders))}.")
    return folders[0] if folders else None


def _holds_output(folder: Path) -> bool:
    return any(SAMPLES.fullmatch(file.name) or RESULTS.fullmatch(file.name) for file in folder.iterdir())


def _launches(name: str) -> tuple[Path, dict[str, list[str]]] | None:
    """The folder and, per task, the times of its evaluations; a file's are its own. None where it is no output.

    Raises:
        UserError: There are documents of several models, or none.
    """
    given = Path(name).expanduser()
    samples, results = SAMPLES.fullmatch(given.name), RESULTS.fullmatch(given.name)
    if given.is_file():
        if samples:
            return given.parent, {samples[1]: [samples[2]]}
        folder = given.parent if results else None
    else:
        folder = _folder(given)
    if folder is None:
        return None
    times: dict[str, list[str]] = {}
    for file in sorted(folder.iterdir()):
        match = SAMPLES.fullmatch(file.name)
        if match and (given.is_dir() or (results and match[2] == results[1])):
            times.setdefault(match[1], []).append(match[2])
    if not times:
        raise UserError(f"{name} holds results without documents, which a comparison needs. {AGAIN}")
    return folder, times


def harness_output(name: str, metrics: Mapping[str, str]) -> HarnessOutput | None:
    """Read a folder's latest evaluation of each task; None where it holds no output of the harness's command.

    Args:
        name: What was given as `--output_path`, the model's folder in it, or one of the files in that: results stand
            for all tasks of their launch, samples for one.
        metrics: task → metric, or `metric,filter`, instead of those by the rule of `evaluate`: the first filter, and
            the first metric of which more is better.

    Raises:
        UserError: There are no documents (`--log_samples`), those of several models, or something is damaged.
    """
    launches = _launches(name)
    if launches is None:
        return None
    folder, times = launches
    results: dict[str, dict[str, Any]] = {}
    for time in {max(found) for found in times.values()}:
        files = [file for file in folder.glob(f"*_{time}.json") if RESULTS.fullmatch(file.name)]
        if not files:
            raise UserError(f"{folder} holds documents of {time}, but no results_{time}.json. {AGAIN}")
        keys = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
        results[time] = read_json(files[0], dict, keys, AGAIN)
    tasks = {}
    for task, found in times.items():
        file = folder / f"samples_{task}_{max(found)}.jsonl"
        try:
            tasks[task] = _entry(task, results[max(found)], metrics.get(task)) | {"file": file}
        except (KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"The results of {max(found)} in {folder} are not those of {file.name}. {AGAIN}") from None
    several = [f"{task} ({len(found)}, the latest {max(found)})" for task, found in times.items() if len(found) > 1]
    notes = [f"{folder} holds several evaluations of a task; the latest is compared: {', '.join(several)}."]
    return HarnessOutput(Path(name), folder, {"tasks": tasks, "columns": {}}, AGAIN, notes if several else [])


def _entry(task: str, results: dict[str, Any], wanted: str | None) -> dict[str, Any]:
    """Metric, filter and mean of a task, by the rule of `evaluate` unless one is wanted.

    Raises:
        UserError: It has no such metric.
    """
    values = {key: value for key, value in results["results"][task].items() if "," in key and "_stderr," not in key}
    configuration, better = results["configs"][task], results["higher_is_better"][task]
    filters = [step["name"] for step in configuration.get("filter_list") or [{"name": "none"}]]
    names = [str(metric["metric"]) for metric in configuration.get("metric_list") or []]
    ordered = [key for name in names for key in values if key.startswith(f"{name},")]
    ordered = [key for key in dict.fromkeys([*ordered, *values]) if wanted or key.endswith(f",{filters[0]}")]
    if wanted:
        candidates = [key for key in ordered if wanted in (key, key.rpartition(",")[0])]
        if not candidates:
            raise UserError(f"--metrics wants {wanted} of {task}, which has {', '.join(ordered)}.")
    else:
        candidates = [key for key in ordered if better.get(key.rpartition(",")[0])] or ordered
    metric, _, filter_name = candidates[0].rpartition(",")
    shots, chat = results["n-shot"].get(task, 0), bool(results.get("chat_template"))
    conditions = {"chat template": chat, "system instruction": results.get("system_instruction")}
    if chat and shots:  # without a template, the prompts tell
        conditions |= {
            "few-shot examples as turns": results.get("fewshot_as_multiturn"),
            "few-shot seed": results["config"].get("fewshot_seed"),
        }
    return {
        "status": "ok", "metric": metric, "filter": filter_name, "mean": values[candidates[0]], "shots": shots,
        "version": results["versions"].get(task), "documents": results["n-samples"][task]["effective"],
        "conditions": conditions,
    }  # fmt: skip
