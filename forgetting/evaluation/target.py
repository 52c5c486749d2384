"""What is evaluated: a run folder, a model folder or a hub model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from forgetting.artifacts import hash_content, hash_file, read_json
from forgetting.errors import UserError


@dataclass(frozen=True)
class Target:
    """A model that the harness can load from paths.

    Attributes:
        kind: `run` is a base model with an adapter on it.
        name: As the user gave it.
        base: Folder or hub id of the base model.
        revision: Hub revision of the base model; None is the newest.
        dtype: The dtype that a run was trained in; None where nothing says it.
        adapter: PEFT folder.
        folder: Where results go unless told otherwise.
    """

    kind: Literal["run", "folder", "hub"]
    name: str
    base: str
    revision: str | None
    dtype: str | None
    adapter: Path | None
    folder: Path

    def model_arguments(self, dtype: str | None) -> dict[str, str]:
        """The harness's `model_args`: only paths and names, so that its data parallelism works."""
        arguments = {"pretrained": self.base}
        if self.revision is not None:
            arguments["revision"] = self.revision
        if dtype is not None:
            arguments["dtype"] = dtype
        if self.adapter is not None:
            arguments["peft"] = str(self.adapter)
        return arguments

    def describe(self) -> dict[str, Any]:
        """The target with the hashes of what will be loaded, for `results.json`.

        Raises:
            UserError: The base model cannot be found.
        """
        from forgetting.model.backbone import backbone_identity

        adapter = None
        if self.adapter is not None:
            files = sorted(file for file in self.adapter.iterdir() if file.suffix in (".json", ".safetensors"))
            adapter = {"path": str(self.adapter), "hash": hash_content([[f.name, hash_file(f)] for f in files])}
        base = backbone_identity(self.base, self.revision)
        return {"kind": self.kind, "name": self.name, "base": base, "adapter": adapter}


def find_target(name: str, revision: str | None = None) -> Target:
    """Find out what `name` is.

    Args:
        name: A run folder (one that holds `adapter/`), a PEFT folder, a transformers folder, or a hub id.
        revision: Hub revision of a hub model.

    Raises:
        UserError: It is none of these.
    """
    path = Path(name).expanduser()
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or name.split("/")[0] in ("runs", "worlds"):
            raise UserError(
                f"There is no folder {name}. Give a run folder (runs/<experiment>/seed-<n>), a model folder, or a hub "
                "id such as meta-llama/Llama-3.2-1B."
            )
        return Target("hub", name, name, revision, None, None, _base_folder(name))
    if not path.is_dir():
        raise UserError(f"{name} is a file; a run folder, a model folder or a hub id was expected.")
    for adapter in (path / "adapter", path):
        if (adapter / "adapter_config.json").is_file():
            return _run(name, path, adapter)
    if (path / "config.json").is_file():
        return Target("folder", name, str(path), None, None, None, _base_folder(name))
    if (path / "fit.yaml").is_file():
        raise UserError(
            f"The run {name} has no adapter: it was not finished. Finish it with "
            f"`python -m forgetting fit --config {path / 'fit.yaml'}`."
        )
    raise UserError(
        f"The folder {name} holds neither adapter/adapter_config.json (a run) nor config.json (a model): "
        "there is nothing to evaluate."
    )


def _run(name: str, path: Path, adapter: Path) -> Target:
    weights = adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"The adapter {adapter} has no {weights.name}: the run was not finished. Run its `fit` again.")
    configuration = read_json(adapter / "adapter_config.json")
    base = configuration.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{adapter / 'adapter_config.json'} does not name its base model (base_model_name_or_path).")
    fit = path / "fit.yaml"
    model = (yaml.safe_load(fit.read_text(encoding="utf-8")) or {}).get("model", {}) if fit.is_file() else {}
    local = Path(base).expanduser()
    if not local.exists() and (base.startswith((".", "/", "~")) or base.count("/") > 1):
        raise UserError(
            f"The adapter {adapter} was trained on the model folder {base}, which is not there (looked from "
            f"{Path.cwd()}). Put the folder back, or change base_model_name_or_path in adapter_config.json."
        )
    revision = None if local.exists() else model.get("revision") or configuration.get("revision")
    return Target("run", name, base, revision, model.get("dtype"), adapter, path)


def _base_folder(name: str) -> Path:
    return Path("runs/base") / name.removeprefix("./").strip("/").replace("/", "--")
