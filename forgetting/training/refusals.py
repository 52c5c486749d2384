"""Settings of Lightning's Trainer that would contradict this code, refused by name before anything is loaded."""

from collections.abc import Mapping
from typing import Any

from forgetting.errors import UserError


def refuse_settings(config: Mapping[str, Any], command: str) -> None:
    """Refuse what would change the computation without a word, or end in a library's traceback.

    Args:
        config: A parsed configuration, with its groups.
        command: `fit`, `validate` or `score`.

    Raises:
        UserError: Naming the setting and what to use instead.
    """
    trainer = config["trainer"]
    instead = {
        "gradient_clip_val": "set model.gradient_clip: optimisation is manual",
        "accumulate_grad_batches": "an item is a whole optimiser step already: set data.batch_size, and "
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
    if command == "fit" and trainer.get("max_epochs") in (None, -1) and trainer.get("max_steps") in (None, -1):
        raise UserError("Give trainer.max_epochs or trainer.max_steps: λ and the learning rate need an end.")
    if config["model"]["seed"] < 0:
        raise UserError(f"The run's seed is {config['model']['seed']}; it must be 0 or more.")
