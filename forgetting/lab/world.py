"""A world on disk: sources, base model, benchmarks, and the overlay that names them for an experiment."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from forgetting.artifacts import complete_folder, hash_content, read_json, write_json
from forgetting.errors import UserError
from forgetting.lab.benchmarks import suite, write_tasks
from forgetting.lab.language import Size, build_language
from forgetting.lab.pretraining import OnStep, Pretraining, write_base
from forgetting.lab.sources import SOURCES, draw_sources, write_rows

FORMAT = 1  # of the folder and of every rule by which a world follows from its seed: raise it when one changes


@dataclass(frozen=True)
class World:
    """What a world is made from.

    Attributes:
        seed: Everything in the world follows from it.
        size: How many items there are.
        num_distinct: Distinct rows in the sources: more than D_train, D_ref and D_val together.
        pretraining: Of the base model.
    """

    seed: int
    size: Size = field(default_factory=Size)
    num_distinct: int = 4_000
    pretraining: Pretraining = field(default_factory=Pretraining)


def write_world(world: World, folder: Path, on_step: OnStep | None = None) -> None:
    """Write a world, complete or not at all; one that is there already is left as it is.

    Args:
        world: What to write.
        folder: Where, such as `worlds/100`.
        on_step: Told about each step of the base model's pretraining.

    Raises:
        UserError: The folder holds another world.
    """
    settings = {"format": FORMAT, **asdict(world)}
    if folder.exists():
        _refuse_another(settings, folder)
        return
    language = build_language(world.seed, world.size)
    with complete_folder(folder) as temporary:
        (temporary / "sources").mkdir()
        for name, rows in draw_sources(world.seed, language, world.num_distinct).items():
            write_rows(temporary / "sources" / f"{name}.jsonl", rows)
        write_tasks(temporary / "tasks", folder / "tasks", language)
        _write_yaml(temporary / "suite.yaml", suite())
        _write_yaml(temporary / "world.yaml", overlay(world.seed, folder))
        write_base(temporary / "base", language, world.seed, world.pretraining, on_step)
        write_json(temporary / "manifest.json", {"hash": hash_content(settings), "settings": settings})


def overlay(seed: int, folder: Path) -> dict[str, Any]:
    """What an experiment needs to know of a world: its model, its data, and its number as the seed of everything."""
    sources = {
        name: {
            "path": (folder / "sources" / f"{name}.jsonl").as_posix(),
            "prompt": "{prompt}",
            "response": "{response}",
        }
        for name in SOURCES
    }
    return {
        "seed_everything": seed,
        "model": {"backbone": (folder / "base").as_posix()},
        "data": {"corpus": {"sources": sources, "seed": seed}, "reference_seed": seed},
    }


def _refuse_another(settings: dict[str, Any], folder: Path) -> None:
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise UserError(f"{folder} is there, but it is no world: it has no manifest.json. Move it away.")
    if read_json(manifest)["hash"] != hash_content(settings):
        raise UserError(
            f"{folder} holds a world that was made with other settings or by another version. Remove it "
            f"(rm -r {folder}) to make it again, or write to another folder."
        )


def _write_yaml(file: Path, content: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
