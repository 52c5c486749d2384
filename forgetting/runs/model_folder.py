"""A run's model as a folder to share: the adapter, or the base with the adapter merged in; tokenizer, card, results."""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from transformers import PreTrainedModel

from forgetting.artifacts import complete_folder
from forgetting.corpus.exported_chat import ExportedChat
from forgetting.errors import UserError
from forgetting.evaluation.results import read_results
from forgetting.model.adapter_folder import CONFIG, SUMS, WEIGHTS
from forgetting.runs.card import Kind, model_card, write_tokenizer
from forgetting.runs.trained import TrainedRun

RESULTS = ".eval_results"
"""Folder of evaluation results that the hub reads."""
COMMIT = r"[0-9a-f]{40}"


def refuse_existing(folder: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
        UserError: It does, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already. Move it away, or give another FOLDER.")


def write_model_folder(run: TrainedRun, folder: Path, merge: bool) -> list[str]:
    """Write the folder, complete or not at all.

    Args:
        run: A finished run.
        folder: To be made; an empty one is replaced.
        merge: Add the adapter into the base model's weights, rather than copying it.

    Returns:
        Names of results files that were left out, as they are of another model.

    Raises:
        UserError: The folder holds something, or the run cannot be merged.
    """
    refuse_existing(folder)
    if merge and run.four_bit:
        raise UserError(
            f"{run.facts.folder} cannot be merged: it was trained on a base in 4 bits, and merging would round. Leave "
            "--merge out to export its adapter."
        )
    tokenizer = run.load_tokenizer()
    chat, kind = run.chat(tokenizer), "merged" if merge else "adapter"
    results, others = _results(run)
    with complete_folder(folder, named_by_content=False) as temporary:
        if merge:
            merged = merged_model(run)
            _stop_at(merged, chat)
            merged.save_pretrained(temporary)
        else:
            for name in (CONFIG, WEIGHTS, SUMS):
                if (run.adapter / name).is_file():
                    shutil.copyfile(run.adapter / name, temporary / name)
        write_tokenizer(tokenizer, run.facts.data["template"], temporary)
        card = model_card(run.facts, kind, chat, list(results.values()))
        (temporary / "README.md").write_text(card, encoding="utf-8")
        _write_results(temporary / RESULTS, results, kind)
    return others


@torch.no_grad()
def merged_model(run: TrainedRun) -> PreTrainedModel:
    """The base model with the adapter added into its weights, in the base model's dtype."""
    merged = run.load_model().merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def _stop_at(model: PreTrainedModel, chat: ExportedChat) -> None:
    """Let generation stop where a response ends by the template; a base model's own ends may be others."""
    settings = model.generation_config
    if chat.end_id is None or settings is None:
        return
    own = settings.eos_token_id
    ends = [] if own is None else own if isinstance(own, list) else [own]
    settings.eos_token_id = list(dict.fromkeys([chat.end_id, *ends]))


def _results(run: TrainedRun) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Results of the run's evaluations by file name, trials apart; and the names of those of another model."""
    own, others = {}, []
    for file in sorted(run.facts.folder.glob("results.*.json")):
        if file.name.endswith(".trial.json"):
            continue
        content = read_results(file, f"Move {file} away, or run `evaluate` again.")
        adapter = content["target"].get("adapter")
        if isinstance(adapter, dict) and adapter.get("hash") == run.adapter_hash:
            own[file.name] = content
        else:
            others.append(file.name)
    return own, others


def _write_results(folder: Path, results: Mapping[str, Mapping[str, Any]], kind: Kind) -> None:
    for name, content in results.items():
        if entries := list(_entries(content, kind)):
            folder.mkdir(exist_ok=True)
            text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
            file = name.removeprefix("results.").removesuffix(".json")
            (folder / f"{file}.yaml").write_text(text, encoding="utf-8")


def _entries(content: Mapping[str, Any], kind: Kind) -> Iterator[EvalResultEntry]:
    """A task's value, in percent, where all documents of a dataset on the hub were evaluated."""
    for name, task in content["tasks"].items():
        data, value = task.get("data") or {}, (task.get("metrics") or {}).get(task["metric"])
        is_whole = task["status"] == "ok" and task.get("documents") == task.get("documents_total")
        if value is None or not is_whole or not re.fullmatch(COMMIT, str(data.get("revision"))):
            continue
        notes = [
            f"lm-evaluation-harness {(content.get('versions') or {}).get('lm_eval', '')}".strip(),
            task["metric"], f"{task.get('shots', 0)}-shot", f"protocol {content['protocol']}",
        ]  # fmt: skip
        if kind == "merged" and not content["target"].get("merged"):
            notes.append("measured before the adapter was merged")
        yield EvalResultEntry(data["path"], name, round(100 * value, 4), data["revision"], notes=", ".join(notes))
