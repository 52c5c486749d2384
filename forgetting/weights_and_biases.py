"""Weights & Biases: which run a folder logs to, its settings and its mode. It never asks for a key.

A training run and everything that follows it (a resumed launch, its scores, its evaluations) is one run there: the id
lies in `wandb.id` in the run's folder, and each launch resumes it.
"""

import inspect
import netrc
import os
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse, urlsplit, urlunsplit

from forgetting.arguments import read_yaml
from forgetting.artifacts import read_json, write_text
from forgetting.errors import UserError
from forgetting.run_folder import read_costs

MODES = ("online", "offline", "disabled", "shared")
ID_FILE = "wandb.id"
LONGEST_TAG = 64
"""Characters; wandb refuses more."""

RECORDED = ("config_hash", "inputs", "selected", "unmatched_targets")
"""Parts of a run's provenance that its configuration there gets."""

SECRETS = ("api_key", "password", "secret", "token", "access_token", "hf_token", "auth_token")
"""Keys whose values are never logged."""


def refuse_wandb_settings(settings: dict[str, Any]) -> None:
    """Refuse what Weights & Biases would refuse, before anything is written.

    Raises:
        UserError: A setting is unknown, the mode is none, or a key is given, which fit.yaml would keep.
    """
    import wandb

    known = inspect.signature(wandb.init).parameters
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"run.wandb has {', '.join(unknown)}, which wandb.init does not take: {', '.join(known)}.")
    if settings.get("mode") not in (None, *MODES):
        raise UserError(f"run.wandb.mode is {settings['mode']!r}; one of {', '.join(MODES)} was expected.")
    further = settings.get("settings")
    if isinstance(further, Mapping) and (given := [name for name in further if name in SECRETS]):
        raise UserError(
            f"run.wandb.settings has {', '.join(given)}, which fit.yaml would keep in plain text. Leave it out, and "
            "set WANDB_API_KEY or run `wandb login`."
        )


def default_project() -> str:
    """The project where the settings name none."""
    return os.environ.get("WANDB_PROJECT") or "forgetting"


def wandb_options(
    settings: Mapping[str, Any], folder: Path, run_id: str, seed: int, write_id: bool = True
) -> dict[str, Any]:
    """The arguments of `wandb.init` that log a training run, and later resume it.

    Args:
        settings: `run.wandb`: `project`, `entity`, `group`, `tags`, `mode` and what else `wandb.init` takes. They
            win over what the run's path says.
        folder: The run's; its id and what is logged offline lie there.
        run_id: Such as `table3/llama-3.2-1b/forgetting-token@positive_fraction=0.5`.
        seed: The run's.
        write_id: Whether this process may write the id where there is none: one rank does.
    """
    *parents, last = run_id.split("/")
    name, _, variant = last.partition("@")
    parts = [*parents, name, *(variant.split("+") if variant else [])]
    options = {
        "project": default_project(),
        "group": "/".join(parents) or name,
        "name": f"{run_id}/seed-{seed}",
        "tags": list(dict.fromkeys(part[:LONGEST_TAG] for part in parts if part)),
        "job_type": "fit",
        "resume": "allow",
        **settings,
    }
    identity = _identity(folder, settings.get("id"), write_id)
    mode = wandb_mode(options.get("mode"))
    if mode == "online" and _has_unsynced(folder, identity):
        print(
            f"Weights & Biases: an earlier part of this run is not synced, so this one is logged offline after it. "
            f"Send both with `wandb sync {folder}/wandb`.", file=sys.stderr,
        )  # fmt: skip
        mode = "offline"
    return {**options, "id": identity, "mode": mode, "dir": str(folder)}


def _identity(folder: Path, given: str | None, write_id: bool) -> str:
    """The run's id at Weights & Biases, the same for every launch that the run takes."""
    file = folder / ID_FILE
    if not write_id:
        return ""
    recorded = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    # The agent of a sweep says which run it is, and wandb heeds nothing else.
    sweep = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    identity = sweep or given or recorded or uuid.uuid4().hex[:16]
    if identity != recorded:
        write_text(file, identity)
    return identity


def _has_unsynced(folder: Path, identity: str) -> bool:
    """Whether something of a run was logged offline and not sent yet; `wandb sync` leaves a marker."""
    files = folder.glob(f"wandb/offline-run-*-{identity}/*.wandb")
    return any(not file.with_suffix(".wandb.synced").exists() for file in files)


@contextmanager
def wandb_run(options: Mapping[str, Any]) -> Iterator[Any]:
    """Start or resume a run for what follows training, next to one that may be active in this process.

    Args:
        options: The arguments of `wandb.init`, as `wandb_options` gives them.

    Yields:
        The `wandb.Run`; it is finished at the end, as failed when an exception passes.
    """
    import wandb

    further = {"silent": True, **(options.get("settings") or {})}
    run = wandb.init(**{**options, "reinit": "create_new", "settings": further})
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def recorded_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run shows: its `fit.yaml`, and its inputs' hashes and last launch as `provenance`.

    Every part that is logged of a run gives it again, so that parts that were logged offline may be sent in any order.

    Args:
        folder: The run's. What it lacks is left out.
    """
    fit, file = folder / "fit.yaml", folder / "provenance.json"
    config: dict[str, Any] = read_yaml(fit) if fit.is_file() else {}
    if file.is_file():
        record = read_json(file, dict, ["config_hash", "inputs", "launches"])
        recorded = {key: record[key] for key in RECORDED if key in record}
        config["provenance"] = {**recorded, "launch": record["launches"][-1]}
    return without_secrets(config)


def cost_summary(folder: Path) -> dict[str, Any]:
    """What each stage of a run took over all its launches, as `cost/<stage>/<quantity>`."""
    summary: dict[str, Any] = {}
    for entry in read_costs(folder):
        stage = f"cost/{entry['stage']}"
        for name in ("seconds", "tokens", "launches"):
            if entry.get(name) is not None:
                summary[f"{stage}/{name}"] = summary.get(f"{stage}/{name}", 0) + entry[name]
        if entry.get("peak_memory_bytes") is not None:
            peak = f"{stage}/peak_memory_bytes"
            summary[peak] = max(summary.get(peak, 0), entry["peak_memory_bytes"])
        summary[f"{stage}/device"] = entry["device"]
    return summary


def without_secrets(content: Any) -> Any:
    """A configuration without the values of secret keys, and without users and passwords in its addresses."""
    if isinstance(content, Mapping):
        return {
            key: "(hidden)" if key in SECRETS and value else without_secrets(value) for key, value in content.items()
        }
    if isinstance(content, list):
        return [without_secrets(value) for value in content]
    if isinstance(content, str) and "://" in content and "@" in content:
        try:
            address = urlsplit(content)
        except ValueError:  # no address after all
            return content
        return urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))
    return content


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
