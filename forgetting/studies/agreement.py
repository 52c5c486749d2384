"""Agreement: of the runs of a row, of the rows of a group, of the evaluations of a table."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from forgetting.arguments import flat
from forgetting.artifacts import read_json
from forgetting.errors import UserError
from forgetting.model.adapter_folder import CONFIG, WEIGHTS, adapter_hash

Results = Sequence[dict[str, Any]]
"""As `evaluate` writes them, with their `path`."""

NAMED = 5
"""Folders, and differing settings, that a message lists at most."""


def made_from(folder: Path) -> dict[str, Any] | None:
    """Return a run's origin, the seed apart: its settings and the hashes of its inputs.

    Returns:
        By dotted name; None where nothing says it.

    Raises:
        UserError: `provenance.json` is not as `fit` writes it.
    """
    path = folder / "provenance.json"
    if not path.is_file():
        return None
    remedy = f"Move {folder} away and run its `fit` again."
    content = read_json(path, dict, ("config_hash", "computed", "inputs"), remedy)
    if not isinstance(content["inputs"], dict) or not isinstance(content["computed"], dict):
        raise UserError(f"{path} does not say what the run was made from: it is damaged. {remedy}")
    # A base is its bytes, wherever they lie.
    hashes = {k: v.get("hash") if isinstance(v, dict) else v for k, v in content["inputs"].items()}
    settings = flat(content["computed"]) | {"config_hash": content["config_hash"]}
    return settings | {f"inputs.{name}": value for name, value in hashes.items()}


def runs_apart(folders: list[Path], changed: Collection[str] | None = None) -> str | None:
    """Say why the runs of a row cannot be averaged, with the folders and what differs; None where they can.

    The runs that most agree are taken as the row's; the message names the others.

    Args:
        folders: Of the runs.
        changed: Dotted settings that the repetitions set themselves, as overlays do: those may differ, and so may the
            inputs. None for seeds, which share everything.
    """
    origins = {folder: made_from(folder) for folder in folders}
    if changed is not None:
        origins = {folder: _shared(origin, changed) for folder, origin in origins.items()}
    if len(folders) < 2 or not any(origins.values()):
        return None
    if unknown := [folder for folder, origin in origins.items() if origin is None]:
        return f"{_listed(unknown)} has no provenance.json, so nothing says whether it belongs to the others"
    keys = {folder: repr(sorted(origin.items())) for folder, origin in origins.items() if origin}
    most = Counter(keys.values()).most_common(1)[0][0]
    usual = next(folder for folder in folders if keys[folder] == most)
    reasons = []
    for folder in folders:
        if keys[folder] != most:
            reasons.append(
                f"{folder} differs from {usual} in {_difference(origins[usual] or {}, origins[folder] or {})}"
            )
    return "; ".join(reasons) or None


def _shared(origin: dict[str, Any] | None, changed: Collection[str]) -> dict[str, Any] | None:
    """The part of a run's origin that repetitions share: each has inputs and a reference of its own."""
    if origin is None:
        return None
    own = ("inputs.", "config_hash", "data.reference", *changed)
    return {key: value for key, value in origin.items() if not key.startswith(own)}


def _difference(usual: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    keys = [key for key in {**usual, **other} if usual.get(key) != other.get(key)]
    keys = [key for key in keys if key != "config_hash"] or keys
    texts = [
        f"its {key.removeprefix('inputs.')}"
        if key.startswith("inputs.") or key == "config_hash"
        else f"{key} ({other.get(key)!r}, not {usual.get(key)!r})"
        for key in keys[:NAMED]
    ]
    return ", ".join(texts) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")


def adapter_problem(result: Mapping[str, Any], folder: Path) -> str | None:
    """Say why a result is not of the adapter that is in its run's folder now; None where it is, or there is none."""
    evaluated = result["target"].get("adapter") if isinstance(result["target"], dict) else None
    if not is_trained(folder):
        return None
    if not isinstance(evaluated, dict) or evaluated.get("hash") != adapter_hash(folder / "adapter"):
        return f"{result['path']} is of another adapter than {folder / 'adapter'}: the run was trained again since"
    return None


def is_trained(folder: Path) -> bool:
    """Whether a run's folder holds its finished adapter."""
    return all((folder / "adapter" / name).is_file() for name in (CONFIG, WEIGHTS))


def rows_differ(group: str, rows: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A note on rows of one group that differ in their corpus, base, store or precision; None where they share them.

    Args:
        group: Its name.
        rows: Origin of each row, as `made_from` returns it; of a model itself its base alone.
    """
    shared = ("inputs.corpus", "inputs.tokens", "inputs.base", "inputs.store")
    names = dict.fromkeys(key for origin in rows.values() for key in origin)
    keys = [key for key in names if key in shared or key.rsplit(".", 1)[-1] in ("precision", "dtype")]
    parts = []
    for key in keys:
        by_value: dict[str, list[str]] = {}
        for row, origin in rows.items():
            if (value := origin.get(key)) is not None:
                by_value.setdefault(str(value), []).append(row)
        if len(by_value) > 1:
            sides = " against ".join(", ".join(members) for members in by_value.values())
            parts.append(f"{key.removeprefix('inputs.')} ({sides})")
    return f"Rows of {group} do not share their {', '.join(parts)}." if parts else None


def notes_on_results(groups: Sequence[Results], protocol: str) -> tuple[list[str], list[str]]:
    """Return facts on how results were evaluated, and problems where they were not evaluated alike.

    Args:
        groups: Results that are to be alike: all of them, or those of each repetition that has data of its own.
        protocol: Of the evaluation.
    """
    facts: list[str] = []
    results = [result for group in groups for result in group]
    if results:
        counts = _documents(results)
        listed = [f"{column} {'/'.join(map(str, sorted(numbers)))}" for column, numbers in counts.items()]
        facts.append(f"Protocol {protocol}; documents: {', '.join(listed)}.")
        harness = {result["versions"]["lm_eval"] for result in results}
        facts.append(f"lm-evaluation-harness {', '.join(sorted(harness))}.")
    problems: list[str] = []
    for group in groups:
        differing = [column for column, numbers in _documents(group).items() if len(numbers) > 1]
        if differing:
            problems.append(f"Rows were evaluated on different numbers of documents: {', '.join(differing)}.")
        problems += _evaluated_apart(group, data=True)
    if len(groups) > 1:
        problems += _evaluated_apart(results, data=False)
    return facts, list(dict.fromkeys(problems))


def _documents(results: Results) -> dict[str, set[int]]:
    """Numbers of evaluation examples by column."""
    counts: dict[str, set[int]] = {}
    for result in results:
        for column, entry in result["columns"].items():
            counts.setdefault(column, set()).add(entry["documents"])
    return counts


def _evaluated_apart(results: Results, data: bool) -> list[str]:
    """Notes on the settings in which results differ; `data`: whether the evaluation examples must be the same."""
    values: dict[str, dict[str, list[str]]] = {}
    for result in results:
        for name, value in _settings(result, data).items():
            values.setdefault(name, {}).setdefault(str(value), []).append(str(Path(result["path"]).parent))
    notes = []
    for name, by_value in values.items():
        if len(by_value) > 1:
            *few, (usual, many) = sorted(by_value.items(), key=lambda item: len(item[1]))
            texts = [f"{value[:16]} in {_listed(folders)}" for value, folders in few]
            notes.append(
                f"Not all results were evaluated with the same {name}: {', '.join(texts)}, "
                f"{usual[:16]} in {f'the other {len(many)}' if len(many) > 1 else many[0]}."
            )
    return notes


def _settings(result: dict[str, Any], data: bool) -> dict[str, Any]:
    """Settings that a result's numbers depend on, the model apart."""
    target = result["target"] if isinstance(result["target"], dict) else {}
    settings = {key: result[key] for key in ("dtype", "seed") if key in result}
    settings |= {"batch size": result["batch_size"]} if "batch_size" in result else {}
    settings |= {"lm-evaluation-harness": result["versions"]["lm_eval"]}
    settings |= {"merge": target["merged"]} if target.get("adapter") and "merged" in target else {}
    hashes = {name: (entry.get("data") or {}).get("hash") for name, entry in result["tasks"].items()}
    return settings | {f"data of {name}": value for name, value in hashes.items() if data and value is not None}


def _listed(folders: list[Any]) -> str:
    return ", ".join(map(str, folders[:NAMED])) + (f" and {len(folders) - NAMED} more" if len(folders) > NAMED else "")
