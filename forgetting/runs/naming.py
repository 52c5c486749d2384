"""From a command line to a run's name, and to the name and the command line of the reference that it needs.

A run's name is its experiment's path below `experiments/`, plus `@` and, joined by `+`, the stems of overlays and the
overrides as typed: `table3/llama-3.2-1b/forgetting-token@file-order+positive_fraction=0.5`. Overlays and overrides that
only say where or how it runs (`NEUTRAL` in `runs/run.py`) are left out. A name depends on nothing but the command line
and the YAML files that it names.
"""

import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetting.arguments import (
    assignment,
    config_files,
    config_options,
    flat,
    merged,
    option_strings,
    overridden,
    read_yaml,
)
from forgetting.artifacts import hash_content
from forgetting.errors import UserError
from forgetting.paths import EXPERIMENTS
from forgetting.runs.run import REFERENCE_IGNORES, TRAINER, Run, changes, is_neutral, run_seed, setting

GROUPS = ("model", "data", "trainer", "run")
LAUNCH = frozenset({"run.id", "seed_everything", "ckpt_path", "verbose"})
"""Neutral keys that are one run's or one command's own, so that they are not handed on to its reference."""
LONGEST = 100
SHARED = ("model.backbone", "model.revision", "data.corpus", "data.template", "data.max_length")
"""Settings that scores depend on, whatever the adapter: those of a run are those of its reference."""


class Naming:
    """The names of a run and of its reference.

    The first `--config` is the experiment (or a saved `fit.yaml`, which carries its `run.id`); later ones are overlays.
    A reference is trained with the same overlays and overrides as the run that needs it, where they concern it.

    Args:
        arguments: The command and its options, with at least one `--config`.

    Attributes:
        run_id: The run's name.
        reference_id: The name of the reference that it would need; a reference's is its own.
        seed: The run's seed.
        files: The experiment and the overlays.
        config: The configuration as plain data, untyped (`arguments.merged`).
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self.arguments = list(arguments)
        experiment, *overlays = config_files(arguments)
        self.files = [experiment, *overlays]
        self._options = option_strings(arguments[1:])
        self._files = merged(self.files)
        self.config = overridden(self._files, self._options)
        self._overlays = [(file, [_plain(key) for key in flat(read_yaml(file))]) for file in overlays]
        self._overrides = self._read_overrides()
        data = self.config["data"]
        self.is_reference = data["split"] == "reference"
        self.seed = run_seed(self.config["seed_everything"], data["split"], data["reference_seed"])
        self._saved = bool(self._files["run"].get("id"))
        name = str(self._files["run"].get("id") or experiment_id(experiment))
        ignored = REFERENCE_IGNORES if self.is_reference else ()
        self.run_id = str(self._overrides.get("run.id") or self._named(name, lambda key: setting(key) not in ignored))
        self._is_explicit = bool(self._overrides.get("data.reference")) and not self.is_reference
        if self.is_reference:
            self.reference_id = self.run_id
        elif self._is_explicit:
            self.reference_id = str(data["reference"])
        else:
            beside = "/".join([*name.split("/")[:-1], "reference"])
            self.reference_id = self._named(str(data.get("reference") or beside), _concerns_reference)

    def _read_overrides(self) -> dict[str, Any]:
        """Plain keys and values of the overrides; what `--key+ value` appends is one value of its own kind."""
        overrides: dict[str, Any] = {}
        for key, value in map(assignment, self._options):
            for name, part in _parts(key, value):
                if name.endswith("+"):
                    overrides.setdefault(name, {"append": []})["append"].append(part)
                else:
                    overrides[name] = part
        return overrides

    def _named(self, name: str, concerns: Callable[[str], bool]) -> str:
        """`name` with the overlays and overrides that concern it."""

        def is_named(key: str) -> bool:
            return not is_neutral(key) and concerns(key)

        overlays = [file.stem for file, keys in self._overlays if any(map(is_named, keys))]
        overrides = {key: self._class_name(key, value) for key, value in self._overrides.items() if is_named(key)}
        return with_variant(name, variant(overlays, overrides))

    def _class_name(self, key: str, value: Any) -> Any:
        """The name without its module of a class that an override chooses; a value of another kind as it is."""
        chosen: Any = self.config
        for part in key.split("."):
            chosen = chosen.get(part) if isinstance(chosen, Mapping) else None
        is_class = isinstance(chosen, Mapping) and "class_path" in chosen and isinstance(value, str)
        return value.rsplit(".", 1)[-1] if is_class else value

    def command(self, command: str) -> str:
        """The command line of another command on the same run."""
        return shlex.join(["python", "-m", "forgetting", command, *self.arguments[1:]])

    def command_beside(self, command: str, experiment: Path) -> str:
        """The command line of a command on another experiment, with the same overlays and overrides."""
        files = [experiment, *(file for file, _ in self._overlays)]
        return shlex.join(["python", "-m", "forgetting", command, *config_options(files), *self._options])

    def command_for_reference(self, command: str) -> str:
        """The command line of a command on the reference that this run needs."""
        return shlex.join(["python", "-m", "forgetting", command, *self.arguments_for_reference()])

    def arguments_for_reference(self) -> list[str]:
        """The files and overrides of the reference, as a command takes them."""
        if self.is_reference:
            return self.arguments[1:]
        files = [self.reference_file, *(file for file, keys in self._overlays if self._passes(keys))]
        options = [option for option in self._options if self._passes([k for k, _ in _parts(*assignment(option))])]
        return [*config_options(files), *options]

    def _passes(self, keys: Collection[str]) -> bool:
        """Whether an overlay or override of these keys is handed on to the reference.

        One that is in the reference's name is. One that is not must not change the reference's results either.
        """
        results = [key for key in keys if not is_neutral(key) and setting(key) not in REFERENCE_IGNORES]
        if any(map(_concerns_reference, results)):
            return not self._is_explicit
        handed_on = (key == "data.reference_seed" or (is_neutral(key) and key not in LAUNCH) for key in keys)
        return not results and any(handed_on)

    @property
    def reference_file(self) -> Path:
        """The experiment of the reference; of a saved run, what the reference's own run saved."""
        name, data = self.reference_id.split("@")[0], self.config["data"]
        if self._saved and data.get("reference"):
            seed = self._files["data"]["reference_seed"]
            return Path(self._files["run"]["root"]) / data["reference"] / f"seed-{seed}" / "fit.yaml"
        folder = experiments_folder(self.files[0])
        if data.get("reference") and folder is not None:
            return folder / f"{name}.yaml"
        return self.files[0].parent / "reference.yaml"

    def refuse_unshared(self, run: Run, reference: Run) -> None:
        """Refuse a trained reference of another corpus or base model than its run's, before anything is loaded.

        Raises:
            UserError: Naming the keys that differ.
        """
        record = reference.provenance()
        if record is None:
            return
        theirs, ours = flat(record["computed"]), flat(run.computed)
        keys = changes(record["computed"], run.computed)
        differing = [key for key in keys if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED)]
        if not differing:
            return
        listed = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing[:5])
        more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise UserError(
            f"The reference {reference.folder} was trained on another corpus or base model than {run.id} is to be "
            f"({listed}{more}): its scores are not of these tokens. Give {self.files[0]} and {self.reference_file} the "
            f"same values; where the reference is to change, move {reference.folder} away and make it again with\n  "
            f"{self.command_for_reference('fit')}\n  {self.command_for_reference('score')}"
        )


def _concerns_reference(key: str) -> bool:
    """Whether a key concerns a run's reference. A trial of a few steps takes the reference that exists."""
    return setting(key) not in REFERENCE_IGNORES and setting(key) not in TRAINER


def _parts(key: str, value: Any) -> list[tuple[str, Any]]:
    """The plain keys that an override sets: those in a group's dictionary, and in a class and its arguments, singly."""
    is_group = key in GROUPS or key.rsplit(".", 1)[-1] == "init_args"
    if isinstance(value, Mapping) and value and (is_group or {"class_path", "init_args"} & value.keys()):
        return [pair for name, part in value.items() for pair in _parts(f"{key}.{name}", part)]
    return [(_plain(key), value)]


def _plain(key: str) -> str:
    """A key without `class_path` and `init_args`: `--model.objective.t_max` means the same with and without them."""
    return ".".join(part for part in key.split(".") if part not in ("class_path", "init_args"))


def experiments_folder(file: Path) -> Path | None:
    """The innermost folder `experiments/` that a file lies in; None where there is none."""
    return next((folder for folder in file.parents if folder.name == EXPERIMENTS), None)


def experiment_id(file: Path) -> str:
    """The path of an experiment's file below `experiments/`, without its suffix; elsewhere the file's own name."""
    path = file.resolve().with_suffix("")
    folder = experiments_folder(path)
    return path.name if folder is None else path.relative_to(folder).as_posix()


def variant(overlays: Sequence[str], overrides: Mapping[str, Any]) -> str:
    """A name for overlays and overrides; empty when there are none.

    Args:
        overlays: Their names, in order: a later one is laid over an earlier one.
        overrides: Values by dotted key.
    """
    keys = sorted(overrides)
    parts = [_safe(name) for name in overlays]
    parts += [f"{key.rstrip('+').rsplit('.', 1)[-1]}={_slug(overrides[key])}" for key in keys]
    name = "+".join(parts)
    # A folder's name has a limit; what does not fit is told apart by its hash.
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 20]}-{hash_content([overlays, overrides])[:12]}"


def _slug(value: Any) -> str:
    """A value as part of a folder's name; two values never have the same."""
    if isinstance(value, (dict, list)):
        return hash_content(value)[:8]
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value).replace("+", "") if math.isfinite(value) else str(value).replace("inf", ".inf")
    text = _safe(Path(value).name if "/" in value else value)
    # What is left out tells values apart: a path's folder, or the quotes around "5".
    is_whole = "/" not in value and assignment(f"--value={value}")[1] == value
    return text if is_whole else f"{text}-{hash_content(value)[:8]}"


def _safe(text: str) -> str:
    """A text as part of a folder's name; one with other characters is told apart by its hash."""
    safe = re.sub(r"[^A-Za-z0-9.,_-]+", "-", text).strip("-")
    return safe if safe == text and text else f"{safe}-{hash_content(text)[:8]}".strip("-")


def with_variant(run_id: str, name: str) -> str:
    """`run_id` with a variant added to the one it may have."""
    if not name:
        return run_id
    return f"{run_id}+{name}" if "@" in run_id else f"{run_id}@{name}"
