"""Weights & Biases: its settings and its mode. It never asks for a key, and logs offline where there is none."""

import inspect
import netrc
import os
import socket
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from forgetting.errors import UserError

MODES = ("online", "offline", "disabled", "shared")


def refuse_wandb_settings(settings: dict[str, Any]) -> None:
    """Refuse what Weights & Biases would refuse, before anything is written.

    Raises:
        UserError: A setting is unknown, or the mode is none.
    """
    import wandb

    known = inspect.signature(wandb.init).parameters
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"run.wandb has {', '.join(unknown)}, which wandb.init does not take: {', '.join(known)}.")
    if settings.get("mode") not in (None, *MODES):
        raise UserError(f"run.wandb.mode is {settings['mode']!r}; one of {', '.join(MODES)} was expected.")


def wandb_mode(asked: str | None) -> str:
    """Online where there is a key and the server answers, else offline; what is asked for is kept.

    wandb itself tries for a minute and a half, then raises, and nothing has been trained.
    """
    mode = asked or os.environ.get("WANDB_MODE")
    if mode is not None:
        return mode
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    if not _has_wandb_key(server.hostname):
        return "offline"
    try:
        port = server.port or (80 if server.scheme == "http" else 443)
        socket.create_connection((server.hostname or "", port), timeout=5).close()
    except (OSError, ValueError) as error:  # ValueError: of a port that is none
        print(
            f"Weights & Biases ({server.hostname}) does not answer ({error}): this run is logged offline. Send it "
            "later with `wandb sync`.", file=sys.stderr,
        )  # fmt: skip
        return "offline"
    return "online"


def _has_wandb_key(host: str | None) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return path.is_file() and host is not None and netrc.netrc(str(path)).authenticators(host) is not None
    except netrc.NetrcParseError:
        return False
