"""From the files and overrides of a command line to a run's id, and to the id of the reference it needs."""

import shlex
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from forgetting.arguments import config_files
from forgetting.paths import EXPERIMENTS
from forgetting.runs.run import REFERENCE_IGNORES, changes, computed, experiment_id, variant, with_variant


class Naming:
    """Names of a run and of its reference.

    The first `--config` is the experiment; later ones are overlays. A reference is trained with the same overlays and
    overrides as the run that needs it, where they mean something to it.

    Args:
        parser: Parses a whole command line.
        arguments: The command and its options.
    """

    def __init__(self, parser: LightningArgumentParser, arguments: list[str]) -> None:
        self._parser = parser
        self.arguments = arguments
        self.files = config_files(arguments)
        self._overrides = _overrides(arguments[1:])
        states = [self._config(self.files[: n + 1], []) for n in range(len(self.files))]
        final = self._config(self.files, self._overrides)
        self._first = states[0] if states else self._config([], [])
        parts = [computed(state) for state in states or [self._first]]
        overlays = [
            (file.stem, changes(before, after))
            for file, before, after in zip(self.files[1:], parts, parts[1:], strict=False)
        ]
        overrides = changes(parts[-1], computed(final))
        # A saved configuration carries its id; of an experiment it is the place of the file.
        self._saved = self._first["run"]["id"]
        name = self._saved or (experiment_id(self.files[0]) if self.files else "paper")
        self.run_id = final["run"]["id"] or name
        if not any(option.split("=", 1)[0] == "--run.id" for option in self._overrides):
            self.run_id = with_variant(name, variant(overlays, overrides))
        self.reference_id = self._reference(final, name, overlays, overrides)
        self.reference_computed = self._reference_computed("data.reference" in overrides)

    def _config(self, files: list[Path], overrides: list[str]) -> dict[str, Any]:
        command = self.arguments[0]
        given = [part for file in files for part in ("--config", str(file))]
        config = self._parser.parse_args([command, *given, *overrides])
        return yaml.safe_load(self._parser.dump(config, skip_unset=False, skip_validation=True))[command]

    def _reference(
        self, final: dict[str, Any], name: str, overlays: list[tuple[str, dict[str, Any]]], overrides: dict[str, Any]
    ) -> str | None:
        data = final["data"]
        if data["split"] == "reference":
            return None
        if "data.reference" in overrides:
            return data["reference"]
        if self._saved and data["reference"]:
            base = data["reference"]
        else:
            beside = "/".join([*name.split("/")[:-1], "reference"])
            base = data["reference"] or beside
        relevant = [(overlay, _meaningful(changed)) for overlay, changed in overlays]
        return with_variant(base, variant(relevant, _meaningful(overrides)))

    def _reference_computed(self, explicit: bool) -> dict[str, Any] | None:
        """What the reference's experiment computes by its file as it is now; None where more than the file says it."""
        file = self._reference_file()
        if self.reference_id is None or "@" in self.reference_id or explicit or self._saved or not file.is_file():
            return None
        return computed(self._config([file], []))

    def _kept(self) -> list[str]:
        return [o for o in self._overrides if not _concerns_method_only(o)]

    def _reference_file(self) -> Path:
        reference = self._first["data"]["reference"]
        if not self.files:
            return Path(EXPERIMENTS) / "reference.yaml"
        if reference and EXPERIMENTS in self.files[0].parts:
            parts = self.files[0].parts
            return Path(*parts[: parts.index(EXPERIMENTS) + 1]) / f"{reference.split('@')[0]}.yaml"
        return self.files[0].parent / "reference.yaml"

    def command(self, command: str) -> str:
        """The command line of another command on the same run."""
        return shlex.join(["python", "-m", "forgetting", command, *self.arguments[1:]])

    def command_for_reference(self, command: str) -> str:
        """The command line of a command on the reference that this run needs."""
        files = [part for path in [self._reference_file(), *self.files[1:]] for part in ("--config", str(path))]
        return shlex.join(["python", "-m", "forgetting", command, *files, *self._kept()])


def _meaningful(changed: dict[str, Any]) -> dict[str, Any]:
    """Those changes that a reference model depends on. A trial of a few steps takes the reference there is."""
    ignored = {f"{group}.{key}" for group, keys in REFERENCE_IGNORES.items() for key in keys}
    return {
        key: v
        for key, v in changed.items()
        if ".".join(key.split(".")[:2]) not in ignored and not key.startswith("trainer.")
    }


def _concerns_method_only(override: str) -> bool:
    key = override.removeprefix("--").split("=", 1)[0]
    return not _meaningful({key: None}) or key in ("seed_everything", "ckpt_path", "run.id")


def _overrides(options: list[str]) -> list[str]:
    """The options other than `--config`, each as one `--key=value`."""
    joined: list[str] = []
    for option in options:
        if option.startswith("-") and not _is_number(option):
            joined.append(option)
        elif joined and "=" not in joined[-1]:
            joined[-1] += f"={option}"
        else:
            joined.append(option)
    return [option for option in joined if option.split("=", 1)[0] not in ("--config", "-c")]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
