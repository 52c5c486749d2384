from pathlib import Path

from forgetting.errors import UserError


def _configs() -> Path:
    """The folder of configurations: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "paper.yaml").is_file():
            return folder
    raise UserError(
        f"configs/paper.yaml, the base of every experiment, is neither in {package} nor in {package.parent}. "
        "The installation is incomplete: install the package again, from a wheel or from the whole repository."
    )


CONFIGS = _configs()
EXPERIMENTS = "experiments"
