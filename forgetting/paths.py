import re
from pathlib import Path

from forgetting.errors import UserError


def _configs() -> Path:
    """The folder of configurations: inside the package in a wheel, next to it in a checkout."""
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
OUTPUTS = ("runs", "worlds")
"""Folders that commands write models into: what is below them is none of the hub's."""

SHIPPED = re.compile(r"(?P<option>--config=|-c=?)?(?P<file>(?:configs|experiments)/.+\.yaml)")
"""A file that comes with the package, as a command line names it."""


def shipped(argument: str) -> str:
    """An argument of the command line, with the path of the package's own file where there is no such file here.

    So `--config experiments/table3/llama-3.2-1b/full.yaml` means the same in any folder, and with an installed wheel.
    """
    if (named := SHIPPED.fullmatch(argument)) and not Path(named["file"]).exists():
        own = CONFIGS.parent / named["file"]
        if own.is_file():
            return f"{named['option'] or ''}{own}"
    return argument


def expanded(path: str) -> Path:
    """The path with `~` replaced.

    Raises:
        UserError: It begins with `~` and there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: {error} Write the path without '~'.") from None


def is_local(name: str) -> bool:
    """Whether a name is a path, existing or not; else it is an id on the hub, `name` or `owner/name`."""
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.split("/")[0] in OUTPUTS
    return is_path or expanded(name).exists()
