"""The machine and the libraries that numbers come from. Nothing here imports torch before it is asked."""

import platform
import resource
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "peft", "datasets")
"""Libraries that training, scoring and evaluation all compute with."""


def versions(*packages: str) -> dict[str, str]:
    """Versions of packages, and of the `LIBRARIES`."""
    return {package: version(package) for package in (*packages, *LIBRARIES)}


def device_name(device: "torch.device") -> str:
    """Model of a GPU; of a CPU, its architecture."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def peak_memory_bytes(device: "torch.device") -> int:
    """Most memory that this process has had: allocated on the GPU, or resident where it computes on the CPU."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
