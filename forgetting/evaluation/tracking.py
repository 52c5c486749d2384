"""Records of an evaluation next to its results: its cost, and a table in Weights & Biases where that is configured."""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from forgetting.run_folder import record_cost


def append_cost(folder: Path, seconds: float, device: str | None) -> None:
    """Add this launch to the folder's `cost.json`."""
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cost = {"stage": "evaluate", "seconds": round(seconds, 3), "device": device, "tokens": None}
    record_cost(folder, cost | {"peak_memory_bytes": memory}, replace=False)


def wandb_settings(run: Path) -> dict[str, Any] | None:
    """Settings by which a run logs to Weights & Biases (`run.wandb` of its fit.yaml); None when it does not."""
    fit = run / "fit.yaml"
    if not fit.is_file():
        return None
    content = yaml.safe_load(fit.read_text(encoding="utf-8")) or {}
    return (content.get("run") or {}).get("wandb")


def log_table(settings: dict[str, Any], folder: Path, content: dict[str, Any]) -> None:
    """Log the results as a table; without a key, or with `WANDB_MODE=offline`, into `folder` for a later `wandb sync`.

    Args:
        settings: `project`, `entity`, `group`, `tags`, `mode` and what else `wandb.init` takes.
        folder: Where its files go.
        content: Of the results file.
    """
    import wandb

    name = f"{content['target']['name']} · {content['suite']} · {content['protocol']}"
    options = {"project": "forgetting", "name": name, **settings}
    mode = options.pop("mode", None) or os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    rows: list[Any] = [
        [name, column["metric"], column["value"], column["stderr"], column["documents"]]
        for name, column in content["columns"].items()
    ]
    run = wandb.init(
        job_type="evaluate", dir=str(folder), mode=mode,  # pyright: ignore[reportArgumentType]
        config={key: content[key] for key in ("target", "suite", "protocol", "versions", "seed")},
        settings=wandb.Settings(silent=True), **options,
    )  # fmt: skip
    table = wandb.Table(columns=["column", "metric", "value", "stderr", "documents"], data=rows)
    run.log({"evaluation": table, "average": content["average"]})
    run.finish()
