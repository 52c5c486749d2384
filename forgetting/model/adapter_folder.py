"""A trained adapter as a PEFT folder: its completeness and its hash. Nothing here needs torch."""

from pathlib import Path

from forgetting.artifacts import hash_content, hash_file, read_json, refuse_changed
from forgetting.errors import UserError

CONFIG, WEIGHTS, SUMS = "adapter_config.json", "adapter_model.safetensors", "SHA256SUMS"
ORIGIN_KEYS = ("base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping")
"""Keys of `adapter_config.json` that say where an adapter comes from and not what it computes."""


def refuse_damaged_adapter(folder: Path) -> None:
    """Refuse a folder that lacks one of PEFT's two files, or whose files are not those that `SHA256SUMS` names.

    Raises:
        UserError: Naming the file. A folder without `SHA256SUMS`, as PEFT writes it, is taken as it is.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no PEFT adapter: {name} is missing.")
    if not (folder / SUMS).is_file():
        return
    remedy = (
        f"Train the adapter again or fetch it again; if you changed it yourself, run `sha256sum {CONFIG} {WEIGHTS} > "
        f"{SUMS}` in its folder."
    )
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    sums = {line[66:]: line[:64] for line in lines}
    if absent := [name for name in (CONFIG, WEIGHTS) if name not in sums]:
        raise UserError(f"{folder / SUMS} has no sum of {', '.join(absent)}: it is damaged. {remedy}")
    refuse_changed(folder, {name: sums[name] for name in (CONFIG, WEIGHTS)}, remedy)


def adapter_hash(folder: Path) -> str:
    """Hash of what the adapter in a PEFT folder computes: its configuration in any order, and its weights' bytes."""
    configuration = read_json(folder / CONFIG)
    result_affecting = {key: value for key, value in sorted_names(configuration).items() if key not in ORIGIN_KEYS}
    return hash_content([result_affecting, hash_file(folder / WEIGHTS)])


def sorted_names(configuration: dict[str, object]) -> dict[str, object]:
    """A configuration with its lists of names sorted: they stand for sets in PEFT."""
    return {
        key: sorted(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value
        for key, value in configuration.items()
    }
