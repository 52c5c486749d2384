import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lab_worlds import SMALL

from forgetting.artifacts import hash_file
from forgetting.errors import UserError
from forgetting.lab.texts import NOISE
from forgetting.lab.world import World, overlay_file, sources_folder, write_world
from forgetting.paths import CONFIGS


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "7"
    write_world(SMALL, folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_what_lies_in_a_world(world: Path):
    assert {path.name for path in world.iterdir()} == {
        "base", "tasks", "suite.yaml", "manifest.json", *(sources_folder(noise) for noise in NOISE),
        *(overlay_file(world, 7, noise).name for noise in NOISE),
    }  # fmt: skip
    for noise in NOISE:
        files = {path.stem for path in (world / sources_folder(noise)).iterdir()}
        assert files == {"dolly", "flan", "oasst", "alpaca", "wizardlm"}


def test_same_seed_same_bytes(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_world(SMALL, Path("worlds/7"))
    write_world(SMALL, Path("again/worlds/7"))
    one, other = hashes(Path("worlds/7")), hashes(Path("again/worlds/7"))
    place = [name for name in one if one[name] != other[name]]  # the files that say where the others lie
    assert set(place) == {
        "manifest.json",
        *(overlay_file(Path(), 7, noise).name for noise in NOISE),
        *(f"tasks/{task}.yaml" for task in ("truthful", "boolean", "logic", "lingual", "math")),
    }


def test_a_world_that_is_there_is_left_alone(world: Path):
    before = hashes(world)
    times = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    write_world(SMALL, world, on_step=lambda done, total: pytest.fail("pretrained again"))
    assert hashes(world) == before
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == times


def test_another_world_in_the_folder_is_refused(world: Path):
    with pytest.raises(UserError, match=r"holds a world that was made with other settings .* Remove the world \(rm -r"):
        write_world(dataclasses.replace(SMALL, num_distinct=201), world)


def flip(path: Path, place: int) -> None:
    """Change one bit, keeping size and time of modification."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "name", ["base/model.safetensors", "base/config.json", "sources/flan.jsonl", "tasks/math.yaml", "suite.yaml"]
)
def test_one_flipped_bit_is_refused(world: Path, tmp_path: Path, name: str):
    shutil.copytree(world, tmp_path / "7")
    write_world(SMALL, tmp_path / "7")  # control
    flip(tmp_path / "7" / name, -9)
    with pytest.raises(UserError, match=rf"{name} was changed or damaged .* Remove the world \(rm -r .*/7\)"):
        write_world(SMALL, tmp_path / "7")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["files"].pop("base/model.safetensors"), "manifest.json was changed or damaged"),
        (lambda content: content["files"].update({"../x": "0"}), "manifest.json was changed or damaged"),
        (lambda content: content.pop("hash"), "manifest.json was changed or damaged"),
        (lambda content: content.pop("settings"), "lacks settings"),
        (lambda content: content.clear(), "lacks settings"),
        (lambda content: content["settings"].update(seed=8), "other settings or by another version"),
    ],
)
def test_a_changed_manifest_is_refused(
    world: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
):
    shutil.copytree(world, tmp_path / "7")
    content = json.loads((world / "manifest.json").read_text())
    change(content)
    (tmp_path / "7/manifest.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as caught:
        write_world(SMALL, tmp_path / "7")
    assert "Remove the world (rm -r" in str(caught.value)


def test_a_manifest_that_is_not_an_object_is_refused(world: Path, tmp_path: Path):
    shutil.copytree(world, tmp_path / "7")
    (tmp_path / "7/manifest.json").write_text("[]")
    with pytest.raises(UserError, match=r"holds a JSON array .* Remove the world"):
        write_world(SMALL, tmp_path / "7")


def test_a_folder_that_is_no_world_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="it is no world"):
        write_world(SMALL, tmp_path)


def test_an_interrupted_world_leaves_nothing(tmp_path: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(SMALL, tmp_path / "7", stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("noise", NOISE)
def test_the_overlay_names_model_sources_and_seeds(noise: str, world: Path):
    overlay = yaml.safe_load(overlay_file(world, 7, noise).read_text())
    assert {Path(source["path"]).parent.name for source in overlay["data"]["corpus"]["sources"].values()} == {
        sources_folder(noise)
    }
    assert Path(overlay["model"]["backbone"]) == world / "base"
    assert all(Path(source["path"]).is_file() for source in overlay["data"]["corpus"]["sources"].values())
    assert {overlay["seed_everything"], overlay["data"]["corpus"]["seed"], overlay["data"]["reference_seed"]} == {7}


def test_the_lab_configuration_is_world_100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write_world(dataclasses.replace(SMALL, seed=100), Path("worlds/100"))
    overlay = yaml.safe_load(Path("worlds/100/world-100.yaml").read_text())
    lab = yaml.safe_load((CONFIGS / "lab.yaml").read_text())
    assert lab["seed_everything"] == overlay["seed_everything"]
    assert lab["model"]["backbone"] == overlay["model"]["backbone"]
    assert lab["data"]["corpus"]["sources"] == overlay["data"]["corpus"]["sources"]
    assert lab["data"]["corpus"]["seed"] == overlay["data"]["corpus"]["seed"]
    assert lab["data"]["reference_seed"] == overlay["data"]["reference_seed"]


def test_the_pool_suffices_for_the_three_draws():
    corpus = yaml.safe_load((CONFIGS / "lab.yaml").read_text())["data"]["corpus"]
    wanted = sum(corpus[f"num_{split}"] for split in ("train", "reference", "validation"))
    assert wanted <= World(0).num_distinct
