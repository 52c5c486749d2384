"""A world on disk: sources, base model, benchmarks, and the overlay that names them for an experiment."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forgetting.artifacts import complete_folder, hash_file, read_json, refuse_changed, verify_manifest, write_manifest
from forgetting.errors import UserError
from forgetting.lab.benchmarks import suite, write_tasks
from forgetting.lab.language import Size, build_language
from forgetting.lab.pretraining import OnStep, Pretraining, write_base
from forgetting.lab.texts import MIXED, NOISE, SOURCES, draw_sources, suffix, write_rows

FORMAT = 4  # of the folder and of every rule by which a world follows from its seed: raise it when one changes


@dataclass(frozen=True)
class World:
    """Settings that a world is made from.

    Attributes:
        seed: Everything in the world follows from it.
        size: Its size.
        num_distinct: Distinct rows in the sources: more than D_train, D_ref and D_val together.
        pretraining: Of the base model.
    """

    seed: int
    size: Size = field(default_factory=Size)
    num_distinct: int = 4_000
    pretraining: Pretraining = field(default_factory=Pretraining)


def write_world(world: World, folder: Path, on_step: OnStep | None = None) -> None:
    """Write a world, complete or not at all; one that is there already is left as it is.

    Raises:
        UserError: The folder holds another world, or something in it was changed since it was made.
    """
    settings = {"format": FORMAT, **asdict(world)}
    if folder.exists():
        _refuse_another(settings, folder)
        return
    language = build_language(world.seed, world.size)
    with complete_folder(folder) as temporary:
        for noise in NOISE:
            place = temporary / sources_folder(noise)
            place.mkdir()
            for name, rows in draw_sources(world.seed, language, world.num_distinct, noise).items():
                write_rows(place / f"{name}.jsonl", rows)
            _write_yaml(overlay_file(temporary, world.seed, noise), overlay(world.seed, folder, noise))
        write_tasks(temporary / "tasks", folder / "tasks", language)
        _write_yaml(temporary / "suite.yaml", suite())
        write_base(temporary / "base", language, world.seed, world.pretraining, on_step)
        files = sorted(file for file in temporary.rglob("*") if file.is_file())
        hashes = {file.relative_to(temporary).as_posix(): hash_file(file) for file in files}
        write_manifest(temporary / "manifest.json", {"settings": settings, "files": hashes})


def sources_folder(noise: str) -> str:
    """Name of the folder in a world that holds its sources with a noise."""
    return f"sources{suffix(noise)}"


def overlay_file(folder: Path, seed: int, noise: str = MIXED) -> Path:
    """The overlay in a world's folder for its sources with a noise."""
    return folder / f"world-{seed}{suffix(noise)}.yaml"


def overlay(seed: int, folder: Path, noise: str = MIXED) -> dict[str, Any]:
    """Overlay of an experiment for a world: its model, its data, and its number as the seed of everything."""
    sources = {
        name: {
            "path": (folder / sources_folder(noise) / f"{name}.jsonl").as_posix(),
            "prompt": "{prompt}",
            "response": "{response}",
            "noise": "noise",
        }
        for name in SOURCES
    }
    return {
        "seed_everything": seed,
        "model": {"backbone": (folder / "base").as_posix()},
        "data": {"corpus": {"sources": sources, "seed": seed}, "reference_seed": seed},
    }


def _refuse_another(settings: dict[str, Any], folder: Path) -> None:
    remedy = f"Remove the world (rm -r {folder}) to make it again, or write to another folder."
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} is there, but it is no world: it has no manifest.json. Move it away.")
    manifest = read_json(path, dict, ("settings",), remedy)
    if manifest["settings"] != settings:
        raise UserError(f"{folder} holds a world that was made with other settings or by another version. {remedy}")
    verify_manifest(path, manifest, remedy)
    refuse_changed(folder, manifest["files"], remedy)


def _write_yaml(file: Path, content: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
