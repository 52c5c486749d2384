"""What an evaluation leaves besides its results: its cost, and a table in Weights & Biases where that is configured."""

import os
from pathlib import Path
from typing import Any

import torch
import yaml

from forgetting.artifacts import read_json, write_json


def append_cost(folder: Path, seconds: float, device: str | None) -> None:
    """Add this launch to the folder's `cost.json`."""
    path = folder / "cost.json"
    costs = read_json(path) if path.is_file() else []
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    cost = {"stage": "evaluate", "seconds": round(seconds, 3), "device": device, "tokens": None}
    write_json(path, [*costs, cost | {"peak_memory_bytes": memory}])


def wandb_project(run: Path) -> str | None:
    """The project of the Weights & Biases logger that a run was trained with, if any."""
    fit = run / "fit.yaml"
    if not fit.is_file():
        return None
    trainer = (yaml.safe_load(fit.read_text(encoding="utf-8")) or {}).get("trainer") or {}
    loggers = trainer.get("logger") or []
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and str(logger.get("class_path", "")).endswith("WandbLogger"):
            return (logger.get("init_args") or {}).get("project") or "forgetting"
    return None


def log_table(project: str, folder: Path, content: dict[str, Any]) -> None:
    """Log the results as a table; without a key, or with `WANDB_MODE=offline`, into `folder` for a later `wandb sync`.

    Args:
        project: Of Weights & Biases.
        folder: Where its files go.
        content: Of `results.json`.
    """
    import wandb

    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    rows: list[Any] = [
        [name, column["metric"], column["value"], column["stderr"], column["documents"]]
        for name, column in content["columns"].items()
    ]
    name = f"{content['target']['name']} · {content['suite']} · {content['protocol']}"
    run = wandb.init(
        project=project, name=name, job_type="evaluate", dir=str(folder), mode=mode,  # pyright: ignore[reportArgumentType]
        config={key: content[key] for key in ("target", "suite", "protocol", "versions", "seed")},
        settings=wandb.Settings(silent=True),
    )  # fmt: skip
    table = wandb.Table(columns=["column", "metric", "value", "stderr", "documents"], data=rows)
    run.log({"evaluation": table, "average": content["average"]})
    run.finish()
