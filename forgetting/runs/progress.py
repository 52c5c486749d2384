"""What a command says while it runs where there is no terminal: a plain line every half minute."""

from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.hooks import RemovableHandle

from forgetting.method.module import FineTuner
from forgetting.method.scoring import ScoringData
from forgetting.progress import Clock


class PlainProgress(Callback):
    """Progress of `fit`, `validate` and `score` as lines, from the first rank alone.

    On a terminal Lightning's bar shows the same. A shard of scores may take many minutes, so `score` counts forward
    passes and not shards.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._first = 0  # steps that were done when this launch began
        self._passed = 0  # sequences that went through a model
        self._hook: RemovableHandle | None = None

    @rank_zero_only
    def _say(self, text: str) -> None:
        print(text, flush=True)

    # --- fit ---------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """The checkpoint, if any, is restored by now."""
        self._first = trainer.global_step
        self._clock = Clock()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:  # fmt: skip
        """A step is done."""
        if self._clock.is_due():
            done, total = trainer.global_step, pl_module.total_steps
            parts = [f"step {done:,} of {total:,}", *described(trainer.callback_metrics)]
            self._say(", ".join(parts) + self._clock.left(done - self._first, total - self._first))

    # --- validate, and validation in fit -----------------------------------------------------------------------------

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """A held-out batch is done."""
        if self._clock.is_due():
            self._say(f"held-out batch {batch_idx + 1:,} of {sum(map(int, trainer.num_val_batches)):,}")

    # --- score -------------------------------------------------------------------------------------------------------

    def on_predict_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Count what goes through the two models, a pass for each column."""
        scoring = trainer.datamodule  # type: ignore[attr-defined] - set by a connector
        assert isinstance(pl_module, FineTuner)
        assert isinstance(scoring, ScoringData)
        passes = len(scoring.columns)
        total = passes * sum(shard.last - shard.first for shard in scoring.pending)
        self._passed = 0
        self._clock = Clock()

        def count(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
            self._passed += trainer.world_size * len(inputs[0].input_ids)
            if self._clock.is_due():
                done = min(self._passed, total)
                self._say(f"{done // passes:,} of {total // passes:,} examples scored{self._clock.left(done, total)}")

        self._hook = pl_module.language_model.register_forward_hook(count)

    def on_predict_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Nothing is counted any more."""
        self._forget()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Nothing is counted any more."""
        self._forget()

    def _forget(self) -> None:
        if self._hook is not None:
            self._hook.remove()


def described(metrics: dict[str, Any]) -> list[str]:
    """What a step is judged by: the nll of both sides, λ, the speed; each where it was logged."""
    forms = {
        "nll_positive": "positive nll {:.3f}", "nll_negative": "negative nll {:.3f}", "coefficient": "λ {:.3g}",
        "tokens_per_second": "{:,.0f} tokens/s",
    }  # fmt: skip
    return [form.format(float(metrics[f"train/{name}"])) for name, form in forms.items() if f"train/{name}" in metrics]
