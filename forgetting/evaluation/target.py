"""Target of an evaluation: a run folder, a model folder or a hub model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forgetting.arguments import read_yaml
from forgetting.artifacts import hash_content, hash_file, read_json
from forgetting.errors import UserError
from forgetting.evaluation.naming import base_folder
from forgetting.model.adapter_folder import CONFIG, WEIGHTS, adapter_hash, refuse_damaged_adapter
from forgetting.paths import is_local
from forgetting.run_folder import seed_folders

ROOT = Path("runs")
"""Root of the results of models that are no runs, which go to `base/` in it."""

SETTINGS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "additional_chat_templates/*", "generation_config.json",
)  # fmt: skip
"""Files of a model folder that change its prompts or its answers, next to configuration and weights."""


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
        folder: Folder of the results unless told otherwise.
        four_bit: Whether a run was trained on a base quantized to NF4.
        provenance: The run's `provenance.json`, if it has one.
    """

    kind: Literal["run", "folder", "hub"]
    name: str
    base: str
    revision: str | None
    dtype: str | None
    adapter: Path | None
    folder: Path
    four_bit: bool = False
    provenance: Path | None = None

    def model_arguments(self, dtype: str | None, chat: bool = False) -> dict[str, Any]:
        """The harness's `model_args`: only paths, names and flags, so that its data parallelism works.

        Args:
            dtype: Of the weights.
            chat: Prompts are in the chat template: an adapter that carries its tokenizer is given with that.
        """
        arguments: dict[str, Any] = {"pretrained": self.base}
        if self.revision is not None:
            arguments["revision"] = self.revision
        if dtype is not None:
            arguments["dtype"] = dtype
        if self.adapter is not None:
            arguments["peft"] = str(self.adapter)
        if chat and self._carries_tokenizer():
            arguments["tokenizer"] = str(self.adapter)
        if self.four_bit:
            compute = dtype if dtype not in (None, "auto") else "bfloat16"
            arguments |= {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": compute}
        return arguments

    def _carries_tokenizer(self) -> bool:
        """Tell whether the adapter's folder holds a tokenizer, with the chat template that was trained on."""
        return self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()

    def chat_tokenizer(self) -> str:
        """Hash of the tokenizer whose chat template prompts are written in, with that template.

        Raises:
            UserError: It has none, or several and none of them is the default.
        """
        from transformers import AutoTokenizer

        from forgetting.corpus.encoding import tokenizer_hash
        from forgetting.model.backbone import load_tokenizer

        carried = self._carries_tokenizer()
        if carried:  # its folder has no config.json, which a model's must have
            try:
                tokenizer = AutoTokenizer.from_pretrained(str(self.adapter), trust_remote_code=False)
            except (OSError, ValueError) as error:
                raise UserError(f"The tokenizer in {self.adapter} cannot be loaded: {error}") from None
        else:
            tokenizer = load_tokenizer(self.base, self.revision)
        try:
            tokenizer.get_chat_template()
        except ValueError as error:
            raise UserError(
                f"--apply-chat-template: the tokenizer of {self.adapter if carried else self.base} has no chat "
                f"template to apply ({error}). Leave the option out, or evaluate a model whose tokenizer has one."
            ) from None
        return tokenizer_hash(tokenizer)

    def describe(self) -> dict[str, Any]:
        """The target with the hashes of what will be loaded, for the results file.

        Raises:
            UserError: The base model cannot be found, or is not the one that the run was trained on.
        """
        from forgetting.model.backbone import backbone_identity

        base = {**backbone_identity(self.base, self.revision), "settings": _settings_hash(self.base)}
        self._refuse_another_base(base)
        adapter = None
        if self.adapter is not None:
            refuse_damaged_adapter(self.adapter)
            adapter = {"path": str(self.adapter), "hash": adapter_hash(self.adapter)}
        return {"kind": self.kind, "name": self.name, "base": base, "adapter": adapter}

    def _refuse_another_base(self, base: dict[str, Any]) -> None:
        """Refuse another base than the run was trained on: on other weights an adapter's numbers mean nothing."""
        if self.provenance is None:
            return
        remedy = f"Move {self.provenance.parent} away and run its `fit` again."
        inputs = read_json(self.provenance, dict, ("inputs",), remedy)["inputs"]
        trained = inputs.get("base") if isinstance(inputs, dict) else None
        if not isinstance(trained, dict) or not {"name", "hash"} <= set(trained):
            raise UserError(f"{self.provenance} does not say which base the run was trained on. {remedy}")
        if trained["hash"] != base["hash"]:
            raise UserError(
                f"The run {self.name} was trained on the base {trained['name']} with the hash {trained['hash']}, and "
                f"{base['name']} now has the hash {base['hash']}: the base was replaced since. Put the old one back, "
                f"or train the run again."
            )
        from forgetting.corpus.encoding import tokenizer_hash
        from forgetting.model.backbone import load_tokenizer

        if "tokenizer" in inputs and tokenizer_hash(load_tokenizer(self.base, self.revision)) != inputs["tokenizer"]:
            raise UserError(
                f"The run {self.name} was trained with another tokenizer than {base['name']} has now: it was replaced "
                "since. Put the old one back, or train the run again."
            )


def target_names(name: str) -> list[str]:
    """`name` itself, or the runs in it where it is an experiment's folder, in the order of their seeds."""
    folder = Path(name).expanduser()
    is_model = (folder / "config.json").is_file() or (folder / "fit.yaml").is_file() or _adapter_in(folder) is not None
    return ([] if is_model else [str(run) for run in seed_folders(folder)]) or [name]


def results_folders(name: str) -> list[Path]:
    """The folders that `evaluate name` writes its results to; a folder that holds nothing but results is itself.

    Raises:
        UserError: There is no such folder.
    """
    return [_results_folder(target) for target in target_names(name)]


def _results_folder(name: str) -> Path:
    path = _existing_folder(name)
    if path is None:
        return ROOT / base_folder(name)
    if adapter := _adapter_in(path):
        return _run_folder(path, adapter)
    is_model = (path / "config.json").is_file() and next(path.glob("results.*.json"), None) is None
    return ROOT / base_folder(name) if is_model else path


def _existing_folder(name: str) -> Path | None:
    """The folder of that name; None where the name is a hub id.

    Raises:
        UserError: It is a path, and no folder is there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{name} is a file; a run folder, a model folder or a hub id was expected.")
    if is_local(name):
        raise UserError(
            f"There is no folder {name}. Give a run folder (runs/<experiment>/seed-<n>), an experiment's folder, a "
            "model folder, or a hub id such as meta-llama/Llama-3.2-1B."
        )
    return None


def find_target(name: str, revision: str | None = None) -> Target:
    """Find out what `name` is.

    Args:
        name: A run folder (one that holds `adapter/`), a PEFT folder, a transformers folder, or a hub id.
        revision: Hub revision of a hub model.

    Raises:
        UserError: It is none of these.
    """
    path = _existing_folder(name)
    if path is None:
        return Target("hub", name, name, revision, None, None, ROOT / base_folder(name))
    if revision is not None:
        raise UserError(f"--revision is only for a model on the hub; {name} is here.")
    if adapter := _adapter_in(path):
        return _run(name, path, adapter)
    if (path / "config.json").is_file():
        return Target("folder", name, str(path), None, None, None, ROOT / base_folder(name))
    if (path / "fit.yaml").is_file():
        raise UserError(
            f"The run {name} has no adapter: it was not finished. Finish it with "
            f"`python -m forgetting fit --config {path / 'fit.yaml'}`."
        )
    raise UserError(
        f"The folder {name} holds neither adapter/adapter_config.json (a run), nor seed-<n> (an experiment's runs), "
        "nor config.json (a model): there is nothing to evaluate."
    )


def _adapter_in(path: Path) -> Path | None:
    return next((folder for folder in (path / "adapter", path) if (folder / CONFIG).is_file()), None)


def _run_folder(path: Path, adapter: Path) -> Path:
    """A run's adapter is the run."""
    is_run_s = adapter == path and path.name == "adapter" and (path.parent / "fit.yaml").is_file()
    return path.parent if is_run_s else path


def _run(name: str, path: Path, adapter: Path) -> Target:
    path = _run_folder(path, adapter)
    weights = adapter / WEIGHTS
    if not weights.is_file():
        raise UserError(f"The adapter {adapter} has no {weights.name}: the run was not finished. Run its `fit` again.")
    file = adapter / CONFIG
    configuration = read_json(file, dict, remedy="Put the adapter's own back, or train it again.")
    base, revision = configuration.get("base_model_name_or_path"), configuration.get("revision")
    if not isinstance(base, str) or not base or not isinstance(revision, str | None):
        raise UserError(f"{file} does not name its base model (base_model_name_or_path) and, if any, its revision.")
    fit, provenance = path / "fit.yaml", path / "provenance.json"
    model = (read_yaml(fit) if fit.is_file() else {}).get("model") or {}
    if not isinstance(model, dict):
        raise UserError(f"{fit}: `model` is no mapping: the file is damaged. Move {path} away and run its `fit` again.")
    local = Path(base).expanduser()
    if not local.exists() and (is_local(base) or _was_folder(provenance)):
        raise UserError(
            f"The adapter {adapter} was trained on the model folder {base}, which is not there (looked from "
            f"{Path.cwd()}). Put the folder back, or change base_model_name_or_path in adapter_config.json."
        )
    return Target(
        "run", name, str(local) if local.exists() else base,
        None if local.exists() else model.get("revision") or revision, model.get("dtype"), adapter, path,
        bool(model.get("four_bit")), provenance if provenance.is_file() else None,
    )  # fmt: skip


def _was_folder(provenance: Path) -> bool:
    """Return whether a run's base was a folder: its hash is a SHA-256, that of a hub model a commit of 40 digits."""
    if not provenance.is_file():
        return False
    inputs = read_json(provenance).get("inputs")
    trained = inputs.get("base") if isinstance(inputs, dict) else None
    return isinstance(trained, dict) and len(str(trained.get("hash"))) == 64


def _settings_hash(base: str) -> str | None:
    """Hash of a folder's tokenizer, chat templates and generation settings; a hub model's commit covers its own."""
    folder = Path(base)
    if not folder.is_dir():
        return None
    files = sorted({file for pattern in SETTINGS for file in folder.glob(pattern) if file.is_file()})
    return hash_content([[file.relative_to(folder).as_posix(), hash_file(file)] for file in files])
