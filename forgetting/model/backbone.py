"""Loading of a causal language model and its tokenizer, from the hub or from a folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from forgetting.artifacts import hash_content, hash_file, read_json
from forgetting.errors import UserError
from forgetting.model.dtypes import DType
from forgetting.paths import is_local

LIBRARY_ERRORS = (
    OSError, ValueError, ImportError, SafetensorError, RuntimeError,
    # of a config.json with values of another kind
    StrictDataclassError, TypeError, LookupError, AttributeError, ArithmeticError,
)  # fmt: skip
"""Errors that transformers raises for files that are not those of a model."""


def load_backbone(
    backbone: str,
    revision: str | None = None,
    dtype: DType = "bfloat16",
    four_bit: bool = False,
    attention: str | None = None,
) -> PreTrainedModel:
    """A causal language model with frozen weights, on the CPU (on the GPU when quantized).

    Args:
        backbone: Hub id or folder, in the transformers format with safetensors weights.
        revision: Hub revision; None is the newest.
        dtype: Of the weights in memory.
        four_bit: Quantize the weights to NF4 (bitsandbytes; needs a CUDA device).
        attention: transformers' `attn_implementation`; None lets it choose.

    Raises:
        UserError: There is no such model, it may not be read, it is not a causal language model, it needs code of its
            own, or its weights are not those that its configuration asks for.
    """
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if attention is not None:
        options["attn_implementation"] = attention
    if four_bit:
        if not torch.cuda.is_available():
            raise UserError("model.four_bit needs a CUDA device and there is none: leave it out to use model.dtype.")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
        options["device_map"] = {"": torch.cuda.current_device()}
    model, loaded = _load_model(backbone, revision, options)
    if model.config.is_encoder_decoder:
        raise UserError(f"{backbone} is an encoder with a decoder; a causal language model was expected.")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise UserError(
            f"{backbone} holds an adapter (adapter_config.json): give its base as model.backbone, and the adapter's "
            "folder as model.adapter."
        )
    _refuse_other_weights(model, loaded, backbone)
    return model.requires_grad_(False)


def refuse_unfit_weights(backbone: str, revision: str | None = None) -> None:
    """Compare a model's weights with its configuration, for a loader that does not. No weight is read.

    Raises:
        UserError: As `load_backbone`.
    """
    model, loaded = _load_model(backbone, revision, {"device_map": "meta"})
    _refuse_other_weights(model, loaded, backbone)


def _load_model(backbone: str, revision: str | None, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and what transformers says of its tensors.

    Tensors of other shapes are reported like missing ones, rather than in an exception without names.
    """
    reported = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    return _load(AutoModelForCausalLM, backbone, revision, {**options, **reported})


def _refuse_other_weights(model: PreTrainedModel, loaded: dict[str, Any], backbone: str) -> None:
    """Refuse other tensors than the model's: transformers draws missing ones at random, and drops others."""
    buffers = [name for name, _ in model.named_buffers()]
    # Older files hold the causal mask of each layer, which is made again: a buffer, or its fill value.
    unexpected = [
        name
        for name in loaded["unexpected_keys"]
        if not name.endswith(".masked_bias") and not any(buffer.endswith(name) for buffer in buffers)
    ]
    shapes = [f"{name} {tuple(file)} instead of {tuple(own)}" for name, file, own in loaded["mismatched_keys"]]
    differences = {"lack": loaded["missing_keys"], "have in addition": unexpected, "have in other shapes": shapes}
    if any(differences.values()):
        raise UserError(
            f"The weights of {backbone} are not those of the {type(model).__name__} in its config.json: they "
            + "; they ".join(f"{what} {some_tensors(names)}" for what, names in differences.items() if names)
            + ". Part of the model would be random or left out. Save or fetch it again, with the config.json that "
            "belongs to these weights."
        )


def some_tensors(names: Iterable[str]) -> str:
    """Return the number of tensors and the first three by name, for an error."""
    ordered = sorted(names)
    more = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return f"{len(ordered)} tensor(s): {', '.join(ordered[:3])}{more}"


def load_tokenizer(backbone: str, revision: str | None = None, local_only: bool = False) -> Tokenizer:
    """The backbone's tokenizer.

    Args:
        backbone: Hub id or folder.
        revision: Hub revision; None is the newest.
        local_only: Ask no hub: take what is on this machine.

    Raises:
        UserError: There is none, or it may not be read.
    """
    return _load(AutoTokenizer, backbone, revision, {"local_files_only": local_only})


def load_configuration(backbone: str, revision: str | None = None, local_only: bool = False) -> Any:
    """The backbone's transformers configuration, without its weights.

    Args:
        backbone: Hub id or folder.
        revision: Hub revision; None is the newest.
        local_only: Ask no hub: take what is on this machine.

    Raises:
        UserError: There is none, or it may not be read.
    """
    return _load(AutoConfig, backbone, revision, {"local_files_only": local_only})


def backbone_identity(backbone: str, revision: str | None = None) -> dict[str, str | None]:
    """Describe a model: its name, the revision asked for, and a hash of its files or its commit.

    The hash of a folder is that of its configuration, its weight files and their index; the hash of a hub model is its
    commit. The tokenizer is not in it (a corpus has its own hash), nor is what only generation looks at.

    Raises:
        UserError: There is no such model, or which commit of it there is cannot be told.
    """
    folder = Path(_resolved_path(backbone))
    if folder.is_dir():
        files = sorted(
            [folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
        )
        return {"name": backbone, "revision": None, "hash": hash_content([[f.name, hash_file(f)] for f in files])}
    commit = getattr(load_configuration(backbone, revision), "_commit_hash", None)
    if commit is None:
        raise UserError(
            f"Which commit of {backbone} was loaded cannot be told, so another one could not be told from it either. "
            f"Download it (`hf download {backbone}`) and give the folder as model.backbone."
        )
    return {"name": backbone, "revision": revision, "hash": commit}


def _resolved_path(backbone: str) -> str:
    """Return the folder that `backbone` names, or the hub id.

    What looks like a folder and is none is refused here: the hub would answer with a cryptic error about repository
    names.
    """
    path = Path(backbone).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"The folder {backbone} holds no config.json: a transformers model folder was expected.")
        read_json(path / "config.json", keys=["model_type"], remedy="Save or fetch the model again.")
        return str(path)
    if is_local(backbone):
        raise UserError(
            f"There is no model folder {backbone}. Give a folder in the transformers format, or a hub id such as "
            "meta-llama/Llama-3.2-1B, as model.backbone."
        )
    return backbone


def _load(kind: Any, backbone: str, revision: str | None, options: dict[str, Any]) -> Any:
    """Load by a class of transformers; where it fails for a reason that the user can fix, say in one sentence which.

    transformers would ask on the terminal, and run a model's own code at "y": here none is run.
    """
    try:
        return kind.from_pretrained(_resolved_path(backbone), revision=revision, trust_remote_code=False, **options)
    except LIBRARY_ERRORS as error:
        cause: BaseException | None = error
        chain: list[BaseException] = []
        while cause is not None:
            chain.append(cause)
            cause = cause.__cause__ or cause.__context__
        raise UserError(_reason(chain, backbone, f" at revision {revision}" if revision else "")) from error


def _reason(chain: list[BaseException], backbone: str, at: str) -> str:
    if any("trust_remote_code" in str(error) for error in chain):
        return (
            f"The model {backbone} brings code of its own (auto_map), and custom code is not run here. Use a model "
            "that transformers knows by itself."
        )
    if Path(backbone).expanduser().is_dir():
        return (
            f"The model in {backbone} could not be loaded (a file may be missing or cut short, or config.json hold a "
            f"value that transformers does not know): {type(chain[0]).__name__}: {chain[0]}"
        )
    if any(isinstance(error, GatedRepoError) for error in chain):
        return (
            f"The model {backbone} is gated: accept its license at https://huggingface.co/{backbone}, then log in with "
            "`hf auth login` or set HF_TOKEN."
        )
    if any(isinstance(error, RevisionNotFoundError) for error in chain):
        return f"The model {backbone} has no revision{at.removeprefix(' at revision')}."
    if any(isinstance(error, RepositoryNotFoundError) for error in chain):
        return (
            f"There is no model {backbone} on the hub that you may read. Check the spelling of model.backbone; for a "
            "private model log in with `hf auth login`; for a folder give its path."
        )
    if constants.HF_HUB_OFFLINE or any(isinstance(error, LocalEntryNotFoundError) for error in chain):
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub could not be reached"
        return (
            f"The model {backbone}{at} is not in the local cache and {offline}. Download it where there is a "
            f"connection (`hf download {backbone}`), or give a folder as model.backbone."
        )
    return f"The model {backbone}{at} could not be loaded: {chain[0]}"
