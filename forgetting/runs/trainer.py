from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule
from lightning import Trainer as LightningTrainer

from forgetting.errors import UserError
from forgetting.method.data import ForgettingData
from forgetting.method.module import FineTuner
from forgetting.method.scoring import ScoringData
from forgetting.runs.checkpoints import SafeCheckpointIO, steps_in_checkpoint
from forgetting.runs.score_writer import ScoreWriter
from forgetting.runs.signals import LeaveWhenAsked, Signals, leave_with_parent


class Trainer(LightningTrainer):
    """Lightning's Trainer, with one more thing to do: score. It ends between two steps when it is asked to.

    Raises:
        UserError: The processes that a launcher started are not those that `devices` and `num_nodes` ask for.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        leave_with_parent()
        super().__init__(*args, **kwargs)
        self.strategy.checkpoint_io = SafeCheckpointIO()
        self._signal_connector = Signals(self)
        self.callbacks.append(LeaveWhenAsked())  # type: ignore[attr-defined]
        if getattr(self.strategy, "_save_distributed_checkpoint", False):
            raise UserError(
                f"{type(self.strategy).__name__} would write checkpoints that are folders, one file per rank. Use "
                "--trainer.strategy sharded (FSDP2 over all ranks): a checkpoint holds the adapter alone and is small."
            )
        asked = self.num_devices * self.num_nodes
        if self.world_size != asked:
            environment = type(getattr(self.strategy, "cluster_environment", None)).__name__
            raise UserError(
                f"{self.num_devices} device(s) on {self.num_nodes} node(s) need {asked} processes, but the launcher "
                f"({environment}) started {self.world_size}: the other devices would stand idle. Start one task for "
                "each device (SLURM: --ntasks-per-node equal to trainer.devices, and srun), or start them by torchrun, "
                "or set trainer.devices and trainer.num_nodes to what there is."
            )

    def fit(
        self, model: LightningModule, train_dataloaders: Any = None, val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None, ckpt_path: Any = None, weights_only: bool | None = True,
    ) -> None:  # fmt: skip
        """Train, as Lightning's; the data module learns where the run will stand before a loader is made."""
        if isinstance(datamodule, ForgettingData):
            datamodule.resumed_steps = 0 if ckpt_path is None else steps_in_checkpoint(Path(ckpt_path))
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def score(self, model: FineTuner, datamodule: ForgettingData) -> None:
        """Write base and reference nll of every response token of D_train (and D_val) into the score store.

        Shards that are there are kept, so an interrupted run is finished by running it again.

        Args:
            model: A FineTuner whose `adapter` is the reference.
            datamodule: A ForgettingData whose `store_folder` is where to write.
        """
        scoring = ScoringData(datamodule, {**model.made_with(), "precision": self.precision})
        writer = ScoreWriter(scoring)
        self.callbacks.append(writer)  # type: ignore[attr-defined]
        self.predict(model, datamodule=scoring, return_predictions=False)
        writer.finish(self, model)
