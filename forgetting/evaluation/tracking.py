"""Records of an evaluation next to its results: its cost, and its numbers in Weights & Biases where that is configured.

The numbers of a run go into the summary of its own run there, so that they can be compared and swept over next to its
settings; a model that was not trained here has a run of its own.
"""

from pathlib import Path
from typing import Any

import torch

from forgetting.arguments import read_yaml
from forgetting.artifacts import hash_content
from forgetting.machine import device_name, peak_memory_bytes
from forgetting.run_folder import record_cost
from forgetting.weights_and_biases import (
    ID_FILE,
    cost_summary,
    default_project,
    recorded_config,
    wandb_mode,
    wandb_options,
    wandb_run,
)


def append_cost(folder: Path, seconds: float, device: torch.device) -> None:
    """Add this launch to the folder's `cost.json`."""
    cost = {"stage": "evaluate", "seconds": round(seconds, 3), "device": device_name(device), "tokens": None}
    record_cost(folder, cost | {"peak_memory_bytes": peak_memory_bytes(device)}, replace=False)


def evaluation_summary(content: dict[str, Any], trial: bool = False) -> dict[str, float]:
    """Numbers of an evaluation by `eval/<suite>/<protocol>/<column>`, their standard errors and the average.

    Args:
        content: Of the results file. A column that failed has no value.
        trial: They are of a part of the documents: they are called `trial/…` instead.
    """
    prefix = f"{'trial' if trial else 'eval'}/{content['suite']}/{content['protocol']}"
    prefix += ".chat" if content.get("apply_chat_template") else ""
    summary = {}
    for name, column in content["columns"].items():
        summary |= {f"{prefix}/{name}": column["value"], f"{prefix}/{name}_stderr": column["stderr"]}
    summary[f"{prefix}/average"] = content["average"]
    return {key: value for key, value in summary.items() if value is not None}


def log_evaluation(
    run: Path, folder: Path, content: dict[str, Any], asked: dict[str, Any] | None = None, trial: bool = False
) -> None:
    """Log an evaluation to Weights & Biases, if the run logs there or it is asked for; without a key, offline.

    Args:
        run: Folder of the run, or of results of a model that is none.
        folder: Of the results; what a run of its own logs offline lies there.
        content: Of the results file.
        asked: Settings such as `project`; those of another project than the run's make a run of its own.
        trial: Whether it is a part of the documents.
    """
    fit = run / "fit.yaml"
    config: dict[str, Any] = read_yaml(fit) if fit.is_file() else {}
    trained = (config.get("run") or {}).get("wandb")
    resumes = trained is not None and (run / ID_FILE).is_file()
    if asked is not None and asked.get("project") != (trained or {}).get("project", default_project()):
        resumes = False
    summary = evaluation_summary(content, trial)
    if resumes:
        assert trained is not None
        options = wandb_options(trained, run, str(config["run"]["id"]), int(config["seed_everything"]))
        summary |= cost_summary(run)
    elif asked is not None or trained is not None:
        options = _own_run(asked or trained or {}, folder, content)
    else:
        return
    with wandb_run(options) as logged:
        if resumes:
            logged.config.update(recorded_config(run), allow_val_change=True)
        logged.summary.update(summary)


def _own_run(settings: dict[str, Any], folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `wandb.init` for a model that has no run: the same run for each suite of the same model."""
    target = content["target"]
    hashes = [part["hash"] if isinstance(part := target.get(key), dict) else part for key in ("base", "adapter")]
    return {
        "project": default_project(), "group": "evaluate", "name": target["name"], "job_type": "evaluate",
        "id": hash_content([target["name"], *hashes])[:16], "resume": "allow",
        "config": {key: content[key] for key in ("target", "versions", "seed")},
        **settings, "mode": wandb_mode(settings.get("mode")), "dir": str(folder),
    }  # fmt: skip
