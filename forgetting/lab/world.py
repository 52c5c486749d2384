"""A world on disk: sources, base model, benchmarks, and the overlay that names them for an experiment."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from forgetting.artifacts import complete_folder, hashes_of, refuse_another, write_manifest, write_yaml
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
        refuse_another(folder, "world", settings)
        return
    language = build_language(world.seed, world.size)
    with complete_folder(folder) as temporary:
        for noise in NOISE:
            place = temporary / sources_folder(noise)
            place.mkdir()
            for name, rows in draw_sources(world.seed, language, world.num_distinct, noise).items():
                write_rows(place / f"{name}.jsonl", rows)
            write_yaml(overlay_file(temporary, world.seed, noise), overlay(world.seed, folder, noise))
        write_tasks(temporary / "tasks", folder / "tasks", language)
        write_yaml(temporary / "suite.yaml", suite())
        write_base(temporary / "base", language, world.seed, world.pretraining, on_step)
        write_manifest(temporary / "manifest.json", {"settings": settings, "files": hashes_of(temporary)})


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
