"""The LightningModule: a language model with LoRA, an objective, one optimiser step an item."""

import time
from contextlib import AbstractContextManager, nullcontext
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import get_linear_schedule_with_warmup

from forgetting.errors import UserError
from forgetting.method.objectives import Objective
from forgetting.method.scoring import ShardScores, ShardWork, score_shard
from forgetting.method.steps import OptimizerStep, SidedBatch
from forgetting.model.adapter_folder import adapter_hash
from forgetting.model.backbone import load_backbone
from forgetting.model.dtypes import DType
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora, load_lora, unmatched_targets
from forgetting.model.sharding import shard_model


class FineTuner(LightningModule):
    """LoRA fine-tuning on an objective of per-token nll (Taheri et al., TMLR 2026, Algorithm 1).

    Optimisation is manual, since an item is a whole optimiser step: neither the loss nor its gradient depends on how
    the step is cut into micro-batches or shared over ranks (dropout apart).

    Args:
        backbone: Hub id or folder of a causal language model with safetensors weights.
        objective: FullTokens, Ignoring or Forgetting.
        revision: Hub revision of the backbone.
        dtype: Of the frozen weights; the adapter is float32 always.
        lora: Rank, scaling, dropout and targets.
        adapter: A PEFT folder to start from (or to score and validate with) instead of a fresh adapter.
        learning_rate: Peak, after warm-up; it falls linearly to 0 at the end.
        warmup_fraction: Share of the steps, rounded up, over which the learning rate rises linearly.
        weight_decay: AdamW's.
        gradient_clip: Largest norm of the gradient; None does not clip.
        activation_checkpointing: Keep only each layer's input and compute the rest again in the backward pass.
        compile: Run the decoder through torch.compile, with dynamic shapes.
        four_bit: Quantise the frozen weights to NF4 (CUDA and bitsandbytes only).
        attention: transformers' attn_implementation; None lets it choose.
        seed: Of the adapter's initialisation and of dropout (linked to seed_everything by the command line).
    """

    def __init__(
        self,
        backbone: str,
        objective: Objective,
        revision: str | None = None,
        dtype: DType = "bfloat16",
        lora: Lora = Lora(),  # noqa: B008 - never changed
        adapter: Path | None = None,
        learning_rate: float = 1e-4,
        warmup_fraction: float = 0.03,
        weight_decay: float = 0.0,
        gradient_clip: float | None = None,
        activation_checkpointing: bool = False,
        compile: bool = False,
        four_bit: bool = False,
        attention: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _refuse_out_of_range(learning_rate, warmup_fraction, weight_decay, gradient_clip)
        self.automatic_optimization = False
        self.strict_loading = False  # a checkpoint holds the adapter alone; on_load_checkpoint checks that it is whole
        self.backbone, self.revision = backbone, revision
        self.objective = objective
        self.dtype_name: DType = dtype
        self.lora = lora
        self.adapter = adapter
        self.learning_rate = learning_rate
        self.warmup_fraction = warmup_fraction
        self.weight_decay = weight_decay
        self.gradient_clip = gradient_clip
        self.activation_checkpointing = activation_checkpointing
        self.compile_decoder = compile
        self.four_bit = four_bit
        self.attention = attention
        self.seed = seed
        self.unmatched_targets: list[str] = []
        self.language_model: LanguageModel = None  # type: ignore[assignment]  # made in configure_model
        self.held_out = torch.nn.ModuleDict({name: MeanMetric() for name in ("nll", "nll_positive", "nll_negative")})
        self._last_step_end: float | None = None

    # --- the model ---------------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Load the backbone, put the adapter on, and shard or compile as configured (once)."""
        if self.language_model is not None:
            return
        backbone = load_backbone(self.backbone, self.revision, self.dtype_name, self.four_bit, self.attention)
        self.unmatched_targets = unmatched_targets(backbone, self.lora.target_modules or [])
        if self.adapter is not None:
            model = load_lora(backbone, self.adapter, trainable=True)
        else:
            model = add_lora(backbone, self.lora, self.seed)
        if self.activation_checkpointing:
            # Older transformers know it by its old name alone, newer ones warn of that.
            enable = getattr(backbone, "activation_checkpointing_enable", backbone.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        language_model = LanguageModel(model)
        if self.compile_decoder:
            language_model.decoder.compile(dynamic=True)
        if self.device_mesh is not None:
            shard_model(language_model, self.device_mesh)
            # FSDP2 watches the versions of its tensors, which inference mode does not keep.
            validating = self.trainer.fit_loop.epoch_loop.val_loop, self.trainer.validate_loop
            for loop in (*validating, self.trainer.predict_loop):
                loop.inference_mode = False
        self.language_model = language_model

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def adapter_hash(self) -> str | None:
        """Hash of the adapter that was loaded from a folder."""
        return None if self.adapter is None else adapter_hash(self.adapter)

    # --- training ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW on the adapter; linear warm-up over ceil(warmup_fraction · steps), then linear decay to 0."""
        optimizer = torch.optim.AdamW(self.trainable().values(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = get_linear_schedule_with_warmup(
            optimizer, ceil(self.warmup_fraction * self.total_steps), self.total_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        return int(self.trainer.estimated_stepping_batches)

    def training_step(self, step: OptimizerStep, batch_idx: int) -> None:
        """Take one optimiser step (Eq. 8 over all its sequences)."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        number = self.trainer.global_step
        if step.number != number:
            raise RuntimeError(
                f"the loader gave step {step.number} where step {number} is due: training on it would leave sequences "
                "out or take them twice. Whatever resumes the run must tell the sampler where it will stand."
            )
        self._seed_dropout(number)
        coefficient = self.objective.coefficient(number, self.total_steps)
        optimizer.zero_grad()
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)  # loss, Σ nll of the positive, of the negative
        for place, batch in enumerate(step.micro_batches, start=1):
            with nullcontext() if place == len(step.micro_batches) else self._without_gradient_sync():
                nll = self.language_model(batch.inputs)
                part = self.objective(
                    nll, batch.positive_mask, batch.negative_mask, coefficient, step.num_positive, step.num_negative
                )
                # Strategies average gradients over ranks; the parts are to be summed.
                self.manual_backward(part * self.trainer.world_size)
            nll = nll.detach()
            sums += torch.stack([part.detach(), nll[batch.positive_mask].sum(), nll[batch.negative_mask].sum()])
        norm, rate = self._clip_gradient(), float(optimizer.param_groups[0]["lr"])
        if not torch.isfinite(norm):  # the same on every rank, since gradients are averaged over them
            raise UserError(
                f"Step {number}: the gradient's norm is {norm.item()}. Nothing was changed by this step; the run is as "
                "its last checkpoint has it. Lower model.learning_rate or λ (t_max), set model.gradient_clip, or look "
                "for damaged weights; the same command resumes there."
            )
        optimizer.step()
        schedule.step()  # type: ignore[union-attr]
        self._log_step(step, sums, coefficient, norm, rate)

    def _seed_dropout(self, step: int) -> None:
        """Dropout's draws follow from run seed, step and rank, so that a resumed run draws what it would have drawn."""
        state = np.random.SeedSequence([self.seed, step, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)

    def _without_gradient_sync(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _clip_gradient(self) -> Tensor:
        parameters = list(self.trainable().values())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[operator]

    def _log_step(self, step: OptimizerStep, sums: Tensor, coefficient: float, norm: Tensor, rate: float) -> None:
        number = step.number
        now, before = time.perf_counter(), self._last_step_end
        self._last_step_end = now
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (number % every and not self.trainer.is_last_batch):
            return
        loss, positive, negative = self.trainer.strategy.reduce(sums, reduce_op="sum")
        values: dict[str, Any] = {
            "train/loss": loss, "train/coefficient": coefficient, "train/learning_rate": rate,
            "train/gradient_norm": norm,
        }  # fmt: skip
        if step.num_positive:
            values["train/nll_positive"] = positive / step.num_positive
        if step.num_negative:
            values["train/nll_negative"] = negative / step.num_negative
        if before is not None:
            values["train/tokens_per_second"] = step.num_tokens / (now - before)
        # Logged here and not by Lightning, which does it after the checkpoint of this step is written: a run resumed
        # from there would lack the row. It stays among the metrics that callbacks can monitor.
        row = {name: float(value) for name, value in values.items()}
        for logger in self.loggers if self.trainer.is_global_zero else ():
            logger.log_metrics(row, step=number)
        self.log_dict({name: torch.tensor(value) for name, value in row.items()}, logger=False)
        self.log("loss", row["train/loss"], prog_bar=True, logger=False)

    # --- held-out nll and scores -------------------------------------------------------------------------------------

    def validation_step(self, batch: SidedBatch, batch_idx: int) -> None:
        """Held-out nll of all response tokens, and by side where D_val is scored: the paper's claim to regularise."""
        nll = self.language_model(batch.inputs)
        sides = {"nll": torch.ones_like(batch.positive_mask)}
        # Of a side that D_val does not have there is no mean. The counts are those of all ranks.
        num_positive, num_negative = self.trainer.datamodule.validation_sides  # type: ignore[attr-defined]
        sides |= {"nll_positive": batch.positive_mask} if num_positive else {}
        sides |= {"nll_negative": batch.negative_mask} if num_negative else {}
        for name, mask in sides.items():
            metric = self.held_out[name]
            assert isinstance(metric, MeanMetric)
            count = mask.sum()
            metric.update(nll[mask].double().sum() / count.clamp(min=1), weight=count)
            self.log(f"validation/{name}", metric, batch_size=1)

    def predict_step(self, work: ShardWork, batch_idx: int) -> ShardScores | None:
        """Both models' nll over a shard."""
        return score_shard(self.language_model, work)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """The clock of the first step starts here."""
        self._last_step_end = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone: the backbone is frozen and named by its hash."""
        names = self.trainable()
        state = checkpoint["state_dict"]  # gathered on the first rank where the model is sharded, empty elsewhere
        checkpoint["state_dict"] = {name: state[name] for name in names} if state else {}
        checkpoint["trained"] = sorted(names)  # sharded strategies take the state out before on_load_checkpoint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks a part of the adapter, or holds what this adapter has not."""
        found, expected = set(checkpoint.get("trained", ())), set(self.trainable())
        if found != expected:
            odd = sorted(found ^ expected)[:3]
            raise UserError(
                f"The checkpoint holds {len(found)} tensors where this adapter has {len(expected)} (such as {odd}): it "
                "belongs to another backbone or other LoRA settings."
            )


def _refuse_out_of_range(
    learning_rate: float, warmup_fraction: float, weight_decay: float, gradient_clip: float | None
) -> None:
    """A wrong sign trains uphill, and a zero trains nothing: neither shows before the results do."""
    tiny = torch.finfo(torch.float32).tiny  # what is smaller is 0 in the optimizer
    checks = [
        ("learning_rate", learning_rate, learning_rate >= tiny, "above 0"),
        ("warmup_fraction", warmup_fraction, 0 <= warmup_fraction <= 1, "between 0 and 1"),
        ("weight_decay", weight_decay, 0 <= weight_decay * learning_rate < 1, "0 or more, and below 1 / learning_rate"),
        ("gradient_clip", gradient_clip, gradient_clip is None or gradient_clip >= tiny, "above 0, or null for none"),
    ]
    for name, value, in_range, expected in checks:
        if value is not None and not (in_range and isfinite(value) and value < 1e20):
            raise UserError(f"model.{name} is {value}; a finite number was expected, {expected}.")
