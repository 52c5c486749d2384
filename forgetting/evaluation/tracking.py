"""Records of an evaluation next to its results: its cost, and a table in Weights & Biases where that is configured."""

from pathlib import Path
from typing import Any

import torch

from forgetting.arguments import read_yaml
from forgetting.machine import device_name, peak_memory_bytes
from forgetting.run_folder import record_cost
from forgetting.weights_and_biases import wandb_mode


def append_cost(folder: Path, seconds: float, device: torch.device) -> None:
    """Add this launch to the folder's `cost.json`."""
    cost = {"stage": "evaluate", "seconds": round(seconds, 3), "device": device_name(device), "tokens": None}
    record_cost(folder, cost | {"peak_memory_bytes": peak_memory_bytes(device)}, replace=False)


def wandb_settings(run: Path) -> dict[str, Any] | None:
    """Settings by which a run logs to Weights & Biases (`run.wandb` of its fit.yaml); None when it does not."""
    fit = run / "fit.yaml"
    return (read_yaml(fit).get("run") or {}).get("wandb") if fit.is_file() else None


def log_table(settings: dict[str, Any], folder: Path, content: dict[str, Any]) -> None:
    """Log the results as a table; without a key, or with `WANDB_MODE=offline`, into `folder` for a later `wandb sync`.

    Args:
        settings: `project`, `entity`, `group`, `tags`, `mode` and what else `wandb.init` takes.
        folder: Where its files go.
        content: Of the results file.
    """
    import wandb

    name = f"{content['target']['name']} · {content['suite']} · {content['protocol']}"
    name += " · chat" if content.get("apply_chat_template") else ""
    options = {"project": "forgetting", "name": name, **settings}
    mode = wandb_mode(options.pop("mode", None))
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
