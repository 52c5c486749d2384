from lightning import Trainer as LightningTrainer

from forgetting.training.data import ForgettingData
from forgetting.training.module import FineTuner
from forgetting.training.records import ScoreWriter, finish_store


class Trainer(LightningTrainer):
    """Lightning's Trainer, with one more thing to do: score."""

    def score(self, model: FineTuner, datamodule: ForgettingData) -> None:
        """Write base and reference nll of every response token of D_train (and D_val) into the score store.

        Shards that are there are kept, so an interrupted run is finished by running it again.

        Args:
            model: A FineTuner whose `adapter` is the reference.
            datamodule: A ForgettingData whose `store_folder` is where to write.
        """
        self.callbacks.append(ScoreWriter())  # type: ignore[attr-defined]
        self.predict(model, datamodule=datamodule, return_predictions=False)
        finish_store(self, model, datamodule)
