"""The record of a run: what it is made from when it starts, whose a checkpoint is, its adapter at the end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from forgetting.artifacts import complete_folder, write_json, write_text
from forgetting.errors import UserError
from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.model.backbone import load_tokenizer
from forgetting.model.lora import save_lora
from forgetting.runs.card import write_adapter_card
from forgetting.runs.loggers import MetricsFile
from forgetting.runs.preflight import preflight
from forgetting.runs.provenance import all_inputs, checkpoint_identity, launch, provenance, refuse_other_inputs
from forgetting.runs.run import Run
from forgetting.runs.run_facts import read_run
from forgetting.weights_and_biases import without_secrets


class RunRecord(Callback):
    """Writes a run's folder: provenance and `fit.yaml` at the start, the adapter at the end (it means: complete)."""

    def __init__(
        self, run: Run, config_text: str, metrics: MetricsFile, module: FineTuner, data: ForgettingData
    ) -> None:
        self.run = run
        self.config_text = config_text
        self.metrics = metrics
        self.module, self.data = module, data
        self._before: dict[str, float] = {}

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Everything is loaded and nothing is trained yet: say what this run is made from."""
        made_from = provenance(self.run, self.data, self.module)
        refuse_other_inputs(self.run, made_from["inputs"], trainer)
        if trainer.is_global_zero:
            self.run.folder.mkdir(parents=True, exist_ok=True)
            before = self.run.provenance() or {"launches": []}
            launches = [*before["launches"], launch(trainer, self.data, self.module)]
            write_text(self.run.folder / "fit.yaml", self.config_text)
            write_json(self.run.provenance_file, {**made_from, "launches": launches})
            for logger in trainer.loggers:
                logger.log_hyperparams(without_secrets(yaml.safe_load(self.config_text)))
            print(preflight(trainer, self.module, self.data), flush=True)

    def on_sanity_check_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the held-out nll before the first step, if Lightning's check went through all of D_val."""
        if trainer.num_sanity_val_steps == float("inf"):
            self._before = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The checkpoint, if any, is restored by now. A check of the held-out nll is not logged by Lightning."""
        self.metrics.start_at(trainer.global_step)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if trainer.global_step > 0 and logger is not self.metrics:
                self.metrics.log_again(logger)
            elif self._before and trainer.global_step == 0:
                logger.log_metrics(self._before, step=0)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose it is. What was logged up to a checkpoint is on disk when the checkpoint is."""
        checkpoint["run"] = checkpoint_identity(self.run, all_inputs(self.data, self.module))
        self.metrics.write()

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse the checkpoint of another run, and to resume this one where an input has changed."""
        refuse_other_inputs(self.run, all_inputs(self.data, self.module), trainer)
        ours, theirs = checkpoint_identity(self.run, all_inputs(self.data, self.module)), checkpoint.get("run") or {}
        odd = [name for name in ours if theirs.get(name) != ours[name]]
        if odd:
            raise UserError(
                f"The checkpoint {trainer.ckpt_path} is of another run than {self.run.folder}: "
                + "; ".join(f"{name} is {theirs.get(name)!r} there, {ours[name]!r} here" for name in odd)
                + ". Leave --ckpt_path out; to start from another run's adapter give it as model.adapter."
            )

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the adapter as a plain PEFT folder, with its tokenizer and a model card."""
        if trainer.global_step < self.module.total_steps:
            return  # interrupted: the checkpoint says where to resume
        self.metrics.write()  # the card tells the last held-out nll
        save_adapter(self.module, self.run.adapter, trainer.is_global_zero, self._describe)

    def _describe(self, folder: Path) -> None:
        """Put the tokenizer and a model card next to the adapter."""
        tokenizer = load_tokenizer(self.module.backbone, self.module.revision)
        write_adapter_card(folder, read_run(self.run.folder), tokenizer)


def save_adapter(
    module: FineTuner, folder: Path, write: bool, describe: Callable[[Path], None] = lambda folder: None
) -> None:
    """Save the adapter in PEFT's format, complete or not at all. Every rank calls it; the one told to writes.

    Args:
        module: With the trained adapter.
        folder: To be made.
        write: Whether this rank writes.
        describe: Adds files of its own to the folder before it appears.

    Raises:
        UserError: A tensor holds a number that is not finite.
    """
    model = module.language_model.model
    assert isinstance(model, PeftModel)
    state: Any = None
    if module.device_mesh is not None:  # sharded: gather the whole adapter on the first rank
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = get_model_state_dict(model, options=options)
    if not write:
        return
    trained = module.trainable() if state is None else state
    if broken := [name for name, tensor in trained.items() if not torch.isfinite(tensor).all()]:
        raise UserError(
            f"The run diverged in its last step: {len(broken)} of the adapter's tensors, such as {broken[0]}, hold "
            f"numbers that are not finite. It is not saved. Remove {folder.parent} and lower model.learning_rate, "
            "model.weight_decay or λ."
        )
    with complete_folder(folder) as temporary:
        save_lora(model, temporary, state)
        describe(temporary)
