"""Settings that would contradict this code or mislead, refused by name before anything is loaded."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from forgetting.errors import UserError

SIXTEEN_BITS = ("bf16-true", "16-true", "16-mixed", "16", "transformer-engine-float16")


def refuse_settings(config: Mapping[str, Any], command: str) -> None:
    """Refuse what would change the computation without a word, or end in a library's traceback.

    Raises:
        UserError: Naming the setting and what to use instead.
    """
    trainer = config["trainer"]
    instead = {
        "gradient_clip_val": "set model.gradient_clip: optimization is manual",
        "accumulate_grad_batches": "an item is a whole optimizer step already: set data.batch_size, and "
        "data.micro_batch_tokens for memory",
        "limit_train_batches": "set trainer.max_steps: the order of an epoch is that of the whole corpus",
        "overfit_batches": "take a small corpus: data.corpus.num_train",
        "limit_predict_batches": "a store is whole or unfinished: take a small corpus instead",
    }
    neutral = {"accumulate_grad_batches": (None, 1), "limit_train_batches": (None, 1.0),
               "limit_predict_batches": (None, 1.0), "overfit_batches": (None, 0, 0.0)}  # fmt: skip
    for name, advice in instead.items():
        value = trainer.get(name)
        if value not in neutral.get(name, (None,)):
            raise UserError(f"trainer.{name} is {value}, which this code cannot follow. Leave it out and {advice}.")
    if trainer.get("use_distributed_sampler"):
        raise UserError("trainer.use_distributed_sampler must be false: the sampler of steps is shared by all ranks.")
    least = {
        "max_epochs": 1, "max_steps": 1, "log_every_n_steps": 1, "check_val_every_n_epoch": 1, "limit_val_batches": 0,
    }  # fmt: skip
    for name, number in least.items():
        value = trainer.get(name)
        if value is not None and value < number and not (value == -1 and name.startswith("max_")):
            raise UserError(f"trainer.{name} is {value}; it must be at least {number}.")
    if command == "fit" and trainer.get("max_epochs") in (None, -1) and trainer.get("max_steps") in (None, -1):
        raise UserError("Give trainer.max_epochs or trainer.max_steps: λ and the learning rate need an end.")
    if str(trainer.get("precision")) in SIXTEEN_BITS:
        raise UserError(
            f"trainer.precision is {trainer['precision']}, which would round the adapter or its gradient to 16 bits. "
            "Use bf16-mixed or 32-true; the frozen weights have a dtype of their own, model.dtype."
        )
    strategy = trainer.get("strategy")
    name = str(strategy.get("class_path") if isinstance(strategy, Mapping) else strategy).rsplit(".", 1)[-1]
    if name.lower().startswith(("fsdp", "deepspeed")):
        raise UserError(
            f"trainer.strategy is {name}, which this code does not support: it wants one dtype in a unit, and the "
            "adapter is float32 next to a bfloat16 base. Use --trainer.strategy sharded (FSDP2)."
        )
    if not 0 <= config["model"]["seed"] < 2**32:
        raise UserError(f"The run's seed is {config['model']['seed']}; it must be 0 or more, and below 2 to the 32.")
    check = trainer.get("val_check_interval")
    if isinstance(check, (int, float)) and not (check >= 1 if isinstance(check, int) else 0 < check <= 1):
        raise UserError(
            f"trainer.val_check_interval is {check}; a fraction of an epoch above 0 and up to 1.0, or a number of "
            "steps, was expected."
        )


def refuse_inherited_arguments(config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse an objective or a score with an argument that was given to the class that it has replaced.

    The parser hands on whatever the new class takes, too; a run's name says that the class is as it comes.

    Args:
        config: As parsed.
        given: The configuration as plain data, in which another class drops the arguments of the one before.

    Raises:
        UserError: Naming the argument.
    """
    for group, name in (("model", "objective"), ("data", "score")):
        _refuse_inherited(f"{group}.{name}", config[group][name], given.get(group, {}).get(name))


def _refuse_inherited(key: str, parsed: Any, given: Any) -> None:
    if not isinstance(parsed, Mapping) or "class_path" not in parsed:
        return
    module, _, name = parsed["class_path"].rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    arguments = given if isinstance(given, Mapping) else {}
    arguments = {**arguments, **(arguments.get("init_args") or {})}  # an override's key needs no `init_args`
    for argument, value in (parsed.get("init_args") or {}).items():
        if argument in arguments:
            _refuse_inherited(f"{key}.{argument}", value, arguments[argument])
        elif value != parameters[argument].default:
            raise UserError(
                f"{key} is {name} in place of another class, whose {argument} {value} it would keep. Say which you "
                f"want: {key}.{argument}."
            )
