"""Random numbers of a task: those that the harness's command line would draw for it in a launch of its own.

There, all generators are seeded once; then the model is loaded, then the task, then it is run, and each of them draws:
the loading of an adapter from torch, the loading of data from Python, a task's functions from any. Here, tasks are
loaded before the model, and one launch runs many. So the states after each of the two loadings are kept, and put back
before the task is run.
"""

import random
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.utils import set_torch_seed


class Draws(NamedTuple):
    """The states of all global generators."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: list[torch.Tensor]


def seed_all(seed: int) -> None:
    """Seed all generators as the harness's `--seed` does, that of few-shot examples apart."""
    random.seed(seed)
    np.random.seed(seed)
    set_torch_seed(seed)


def draws() -> Draws:
    """Return the states of all global generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return Draws(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)


def put_back(task: Draws, model: Draws) -> None:
    """Let the generators stand as after the loading of a task (Python's and NumPy's) and of the model (torch's)."""
    random.setstate(task.python)
    np.random.set_state(task.numpy)
    torch.set_rng_state(model.cpu)
    if model.cuda:
        torch.cuda.set_rng_state_all(model.cuda)
