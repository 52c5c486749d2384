"""The LightningModule: a language model with LoRA and an objective; one item is one optimizer step."""

import time
from contextlib import AbstractContextManager, nullcontext
from math import ceil, isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor
from torchmetrics import MeanMetric
from transformers import get_linear_schedule_with_warmup

from forgetting.errors import UserError
from forgetting.method.held_out import HeldOutBatch
from forgetting.method.objectives import Objective
from forgetting.method.response_tokens import ResponseTokens, Step, StepSums
from forgetting.method.scoring import ShardScores, ShardWork, score_shard
from forgetting.method.steps import OptimizerStep
from forgetting.model.adapter_folder import adapter_hash
from forgetting.model.backbone import load_backbone
from forgetting.model.dtypes import DType
from forgetting.model.language_model import LanguageModel
from forgetting.model.lora import Lora, add_lora, load_lora, unmatched_targets
from forgetting.model.sharding import shard_model

NUM_SUMS = 5
"""How many sums a step has, those of the objective apart (`_sums`)."""

OBJECTIVE = "objective."
"""How the names of an objective's parameters and buffers begin."""

SHOWN = {
    "train/loss": "loss", "train/nll_positive": "nll+", "train/nll_negative": "nll−", "train/coefficient": "λ",
    "train/tokens_per_second": "tokens/s",
}  # fmt: skip
"""Numbers of a step that the progress bar shows, and their names there."""


class FineTuner(LightningModule):
    """LoRA fine-tuning on an objective of per-token nll (Taheri et al., TMLR 2026, Algorithm 1).

    Optimization is manual, since an item is a whole optimizer step: neither the loss nor its gradient depends on how
    the step is divided into micro-batches and ranks (dropout apart).

    Args:
        backbone: Hub id or folder of a causal language model with safetensors weights.
        objective: MeanNLL (Full Tokens, Ignoring), Forgetting, or one of your own.
        revision: Hub revision of the base model.
        dtype: Of the frozen weights; the adapter is float32 always.
        lora: Rank, scaling, dropout and targets.
        start: Train a fresh adapter, or go on with the reference's, which has learned all tokens of D_ref (`adapter` is
            then its folder; the command line finds it).
        adapter: A PEFT folder to start from (or to score and validate with) instead of a fresh adapter.
        learning_rate: Peak, after warm-up; it falls linearly to 0 at the end.
        warmup_fraction: Fraction of the steps, rounded up, over which the learning rate rises linearly.
        weight_decay: AdamW's.
        gradient_clip: Largest norm of the gradient; None does not clip.
        activation_checkpointing: Keep only each layer's input and compute the rest again in the backward pass.
        compile: Run the decoder through torch.compile, with dynamic shapes.
        four_bit: Quantize the frozen weights to NF4 (CUDA and bitsandbytes only).
        attention: transformers' attn_implementation; None lets it choose.
        seed: Of the adapter's initialization and of dropout (linked to seed_everything by the command line).
    """

    def __init__(
        self,
        backbone: str,
        objective: Objective,
        revision: str | None = None,
        dtype: DType = "bfloat16",
        lora: Lora = Lora(),  # noqa: B008 - never changed
        start: Literal["fresh", "reference"] = "fresh",
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
        self.start, self.adapter = start, adapter
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
        """Load the base model, put the adapter on, and shard or compile as configured (once)."""
        if self.language_model is not None:
            return
        backbone = load_backbone(self.backbone, self.revision, self.dtype_name, self.four_bit, self.attention)
        self.unmatched_targets = unmatched_targets(backbone, self.lora.target_modules or [])
        if self.start == "reference" and self.adapter is None:
            raise UserError(
                "model.start is reference: the folder of the reference's adapter was expected as model.adapter."
            )
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
            if any(parameter.requires_grad for parameter in self.objective.parameters()):
                raise UserError(
                    f"{type(self.objective).__name__} has parameters that are trained, which the sharded strategy does "
                    "not share. Use trainer.strategy ddp, or update buffers in after_step."
                )
            shard_model(language_model, self.device_mesh)
            # FSDP2 watches the versions of its tensors, which inference mode does not keep.
            validating = self.trainer.fit_loop.epoch_loop.val_loop, self.trainer.validate_loop
            for loop in (*validating, self.trainer.predict_loop):
                loop.inference_mode = False
        self.language_model = language_model

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The adapter's parameters, by name: what an adapter's folder holds."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad and not name.startswith(OBJECTIVE)}

    def _trained(self) -> list[torch.nn.Parameter]:
        """Everything that the optimizer updates: the adapter, and an objective's parameters."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @property
    def columns(self) -> tuple[str, ...]:
        """Stored columns that the objective reads."""
        return tuple(c for c in self.objective.columns if not (c == "nll_base" and self.objective.computes_base))

    @property
    def needs_negative(self) -> bool:
        """Whether the objective unlearns."""
        return self.objective.needs_negative

    def made_with(self) -> dict[str, Any]:
        """What scores by this model depend on, the base model apart."""
        return {"adapter": self.adapter_hash, "dtype": self.dtype_name, "four_bit": self.four_bit}

    @property
    def adapter_hash(self) -> str | None:
        """Hash of the adapter that was loaded from a folder."""
        return None if self.adapter is None else adapter_hash(self.adapter)

    # --- training ----------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained; linear warm-up over ceil(warmup_fraction · steps), then linear decay to 0."""
        optimizer = torch.optim.AdamW(self._trained(), lr=self.learning_rate, weight_decay=self.weight_decay)
        schedule = get_linear_schedule_with_warmup(
            optimizer, ceil(self.warmup_fraction * self.total_steps), self.total_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return int(self.trainer.estimated_stepping_batches)

    def training_step(self, step: OptimizerStep, batch_idx: int) -> None:
        """Take one optimizer step (Eq. 8 over all its sequences)."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert not isinstance(optimizer, list)
        number = self.trainer.global_step
        if step.number != number:
            raise RuntimeError(
                f"the loader gave step {step.number} where step {number} is due: training on it would leave sequences "
                "out or take them twice. Whatever resumes the run must tell the sampler where it will stand."
            )
        self._seed_dropout(number)
        counts = Step(number, self.total_steps, step.num_positive, step.num_negative)
        metrics = self.objective.metrics(counts)  # as they are in this step; `after_step` may change them
        optimizer.zero_grad()
        parts: list[Tensor] = []
        for place, batch in enumerate(step.micro_batches, start=1):
            with nullcontext() if place == len(step.micro_batches) else self._without_gradient_sync():
                tokens = self.objective.select(batch.under(self.language_model, self.objective), counts)
                share = batch.share(self.objective, tokens, counts)
                # Strategies average gradients over ranks; the shares are to be summed.
                self.manual_backward(share * self.trainer.world_size)
            parts.append(torch.cat([_sums(share, tokens), self.objective.statistics(tokens)]))
        sums = torch.stack(parts).sum(0)
        norm, rate = self._clip_gradient(), float(optimizer.param_groups[0]["lr"])
        if not torch.isfinite(norm):  # the same on every rank, since gradients are averaged over them
            raise UserError(
                f"Step {number}: the gradient's norm is {norm.item()}. Nothing was changed by this step; the run is as "
                "its last checkpoint has it. Lower model.learning_rate or λ (t_max), set model.gradient_clip, or look "
                "for damaged weights; the same command resumes there."
            )
        optimizer.step()
        schedule.step()  # type: ignore[union-attr] - configure_optimizers gives one
        seconds = self._seconds_since_last_step()
        observes, logs = type(self.objective).after_step is not Objective.after_step, self._is_logged(number)
        if not (observes or logs):
            return
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")
        known = sums[:NUM_SUMS].tolist()  # waits for the device
        if observes:
            loss, positive, negative, *_ = known
            news = self.objective.after_step(StepSums(counts, loss, positive, negative, sums[NUM_SUMS:]))
            if news is not None:
                self.print(news)
        if logs:
            speed = {} if seconds is None else {"tokens_per_second": step.num_tokens / seconds}
            self._log_step(number, known, {**metrics, "learning_rate": rate, "gradient_norm": float(norm), **speed})

    def _seed_dropout(self, step: int) -> None:
        """Dropout's draws follow from run seed, step and rank, so that a resumed run draws what it would have drawn."""
        state = np.random.SeedSequence([self.seed, step, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]) >> 1)

    def _without_gradient_sync(self) -> AbstractContextManager[Any]:
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _clip_gradient(self) -> Tensor:
        parameters = self._trained()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip, norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # type: ignore[operator] - DTensor's

    def _is_logged(self, number: int) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined] - set by a connector
        return bool(every) and (number % every == 0 or self.trainer.is_last_batch)

    def _seconds_since_last_step(self) -> float | None:
        now, before = time.perf_counter(), self._last_step_end
        self._last_step_end = now
        return None if before is None else now - before

    def _log_step(self, number: int, sums: list[float], values: dict[str, float]) -> None:
        """Write a step's row: its loss and means, the objective's own metrics, what else is known."""
        loss, positive, negative, num_positive, num_negative = sums
        row = {"train/loss": loss, **{f"train/{name}": value for name, value in values.items()}}
        if num_positive:
            row["train/nll_positive"] = positive / num_positive
        if num_negative:
            row["train/nll_negative"] = negative / num_negative
        # Logged here and not by Lightning, which does it after the checkpoint of this step is written: a run resumed
        # from there would lack the row. It stays among the metrics that callbacks can monitor.
        for logger in self.loggers if self.trainer.is_global_zero else ():
            logger.log_metrics(row, step=number)
        self.log_dict({name: torch.tensor(value) for name, value in row.items()}, logger=False)
        shown = {short: row[name] for name, short in SHOWN.items() if name in row}
        self.log_dict(shown, prog_bar=True, logger=False)

    # --- held-out nll and scores -------------------------------------------------------------------------------------

    def validation_step(self, held_out: HeldOutBatch, batch_idx: int) -> None:
        """Held-out nll of all response tokens, and of the positive and negative ones where D_val is scored."""
        batch = held_out.batch
        nll = self.language_model(batch.inputs)
        masks = {"nll": torch.ones_like(batch.positive_mask)}
        # There is no mean over no tokens. The counts are those of all ranks.
        masks |= {"nll_positive": batch.positive_mask} if held_out.num_positive else {}
        masks |= {"nll_negative": batch.negative_mask} if held_out.num_negative else {}
        for name, mask in masks.items():
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

    def _kept(self) -> list[str]:
        """What a checkpoint keeps: the adapter, and the objective's parameters and buffers."""
        return [*self.trainable(), *(OBJECTIVE + name for name in self.objective.state_dict())]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter and the objective's state alone: the base model is frozen and named by its hash."""
        names = self._kept()
        state = checkpoint["state_dict"]  # gathered on the first rank where the model is sharded, empty elsewhere
        checkpoint["state_dict"] = {name: state[name] for name in names} if state else {}
        checkpoint["kept"] = sorted(names)  # sharded strategies take the state out before on_load_checkpoint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that lacks a part of the adapter or the objective, or holds what these have not."""
        left, here = set(checkpoint.get("kept", ())), set(self._kept())
        if left != here:
            raise UserError(
                f"The checkpoint holds {len(left)} tensors where this run has {len(here)} (differing in "
                f"{sorted(left ^ here)[:3]}): it belongs to another base model, objective or other LoRA settings."
            )


def _sums(share: Tensor, tokens: ResponseTokens) -> Tensor:
    """NUM_SUMS numbers of a micro-batch that are added up over a step: loss, nll and count of each side, in float64."""
    nll = tokens.nll.detach().double()
    sides = tokens.positive_mask, tokens.negative_mask
    sums = [share.detach().double(), *(nll[mask].sum() for mask in sides), *(mask.sum().double() for mask in sides)]
    return torch.stack(sums)


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
