"""Stand-in for `forgetting.runs.naming.Naming` until it is merged."""

from pathlib import Path
from typing import Any
import shlex
import yaml
from forgetting.arguments import base_files, config_files, read_yaml, flat
from forgetting.runs.run import experiment_id, _slug, EXECUTION, REFERENCE_IGNORES, TRAINER

_CACHE: dict = {}


def _read(path):
    if path not in _CACHE:
        _CACHE[path] = read_yaml(path)
    return _CACHE[path]


def _merged(below, above):
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        return above
    return below | {key: _merged(below.get(key), value) for key, value in above.items()}


def _neutral(key):
    parts = key.split(".")
    if parts[0] in ("run", "seed_everything", "base"):
        return True
    if parts[0] == "trainer":
        return parts[1] not in TRAINER or parts[1] == "precision"
    return parts[0] in EXECUTION and parts[1] in EXECUTION[parts[0]]


class Naming:
    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        self.files = config_files(arguments)
        self.overrides = []
        rest = arguments[1:]
        while rest:
            if rest[0] == "--config":
                rest = rest[2:]
            elif "=" in rest[0]:
                self.overrides.append(rest[0]); rest = rest[1:]
            else:
                self.overrides.append(f"{rest[0]}={rest[1]}"); rest = rest[2:]
        config: dict[str, Any] = {}
        for file in (*base_files(arguments), *self.files):
            config = _merged(config, _read(file))
        for option in self.overrides:
            key, value = option.removeprefix("--").split("=", 1)
            value = yaml.safe_load(value)
            if key == "model.objective" and isinstance(value, str):
                value = {"class_path": value}
            part: Any = value
            for name in reversed(key.split(".")):
                part = {name: part}
            config = _merged(config, part)
        self.config = config
        stems = [f.stem for f in self.files[1:] if any(not _neutral(k) for k in flat(_read(f)))]
        names = []
        for option in self.overrides:
            key, value = option.removeprefix("--").split("=", 1)
            if not _neutral(key):
                names.append((key, f"{key.rsplit('.', 1)[-1]}={_slug(yaml.safe_load(value))}"))
        name = "+".join([*stems, *(n for _, n in sorted(names))])
        base = experiment_id(self.files[0])
        self.run_id = f"{base}@{name}" if name else base
        data = config["data"]
        self.seed = data["reference_seed"] if data["split"] == "reference" else config["seed_everything"]
        beside = "/".join([*base.split("/")[:-1], "reference"])
        name = "+".join([*stems, *(n for k, n in sorted(names) if k.split(".")[1] not in REFERENCE_IGNORES.get(k.split(".")[0], ()))])
        self.reference_id = (data["reference"] or beside) + (f"@{name}" if name else "")

    def arguments_for_reference(self) -> list[str]:
        reference = self.config["data"]["reference"]
        parts = self.files[0].parts
        if reference and "experiments" in parts:
            file = Path(*parts[: parts.index("experiments") + 1]) / f"{reference}.yaml"
        else:
            file = self.files[0].parent / "reference.yaml"
        given = [part for f in [file, *self.files[1:]] for part in ("--config", str(f))]
        kept = [o for o in self.overrides if not any(o.startswith(f"--{g}.{k}") for g, ks in REFERENCE_IGNORES.items() for k in ks) and not o.startswith("--seed_everything")]
        return [*given, *kept]
