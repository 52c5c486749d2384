import uuid
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from forgetting.artifacts import write_text
from forgetting.runs.run import Run
from forgetting.weights_and_biases import refuse_wandb_settings, wandb_mode


def wandb_logger(settings: dict[str, Any], run: Run) -> WandbLogger:
    """Log a run to Weights & Biases; without a key offline, into the run's folder.

    Args:
        settings: `project`, `entity`, `group`, `tags`, `mode` and what else `wandb.init` takes.
        run: Named `<id>/seed-<n>` there, in the group `<id>`.

    Raises:
        UserError: A setting is unknown.
    """
    refuse_wandb_settings(settings)
    defaults = {"project": "forgetting", "group": run.id, "name": f"{run.id}/seed-{run.seed}", "id": _identity(run)}
    options = {**defaults, **settings}
    mode = wandb_mode(options.pop("mode", None))
    run.folder.mkdir(parents=True, exist_ok=True)
    return WandbLogger(save_dir=str(run.folder), mode=mode, log_model=False, **options)


def _identity(run: Run) -> str:
    """The run's id at Weights & Biases, the same for every launch that the run takes."""
    file = run.folder / "wandb.id"
    if getattr(rank_zero_only, "rank", 0) != 0:
        return ""  # the first rank alone logs
    if not file.is_file():
        write_text(file, uuid.uuid4().hex[:16])
    return file.read_text(encoding="utf-8").strip()
