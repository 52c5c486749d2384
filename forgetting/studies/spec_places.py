"""Files and folders that a study names: relative to the study where they are there, else to the current folder."""

from pathlib import Path
from typing import Any

from forgetting.errors import UserError
from forgetting.paths import EXPERIMENTS
from forgetting.studies.results import suite_path
from forgetting.studies.spec import Repeat
from forgetting.studies.spec_values import check_keys, text


def near(name: str, path: Path) -> Path:
    """A file or folder that the study in `path` names; the study itself is never meant."""
    beside = path.parent / name
    return beside if beside.exists() and not beside.samefile(path) else Path(name)


def file_near(value: Any, path: Path, place: str) -> Path:
    """A file that a study names."""
    return near(text(value, place), path)


def suite_near(value: Any, path: Path, place: str) -> str | None:
    """A suite: a name in `configs/evaluation/`, or the path of a YAML file."""
    if value is None:
        return None
    name = text(value, place)
    if name.endswith((".yaml", ".yml")):
        return near(name, path).as_posix()
    if not suite_path(name).is_file():
        known = ", ".join(sorted(file.stem for file in suite_path(name).parent.glob("*.yaml")))
        raise UserError(f"{place}: there is no suite {name!r}. Known: {known}; or give the path of a YAML file.")
    return name


def repeat_near(value: Any, path: Path, place: str) -> Repeat:
    """An overlay that is a repetition, alone or with its suite."""
    if isinstance(value, str):
        return Repeat(file_near(value, path, place))
    check_keys(value, {"overlay"}, {"overlay", "suite"}, place)
    return Repeat(file_near(value["overlay"], path, place), suite_near(value.get("suite"), path, place))


def experiments_folder(value: Any, path: Path) -> Path:
    """The folder of experiments: as given, else the enclosing folder of that name, else the study's own."""
    if value is not None:
        folder = near(text(value, f"{path}, experiments"), path)
        if not folder.is_dir():
            raise UserError(f"{path}, experiments: there is no folder {folder}.")
        return folder
    enclosing = [folder for folder in path.parents if folder.name == EXPERIMENTS]
    if not enclosing and EXPERIMENTS in (parts := path.absolute().parent.parts):
        enclosing = [Path(*parts[: len(parts) - parts[::-1].index(EXPERIMENTS)])]
    return enclosing[0] if enclosing else path.parent
