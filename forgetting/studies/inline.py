"""The experiments of a study that holds its configuration itself, as files that any command takes."""

from pathlib import Path

import yaml

from forgetting.artifacts import complete_or_absent
from forgetting.paths import EXPERIMENTS
from forgetting.studies.spec import INLINE, Study


def write_inline(study: Study, root: Path) -> Path:
    """Write a study's own `config` as the experiments `<study>/run` and `<study>/reference`; what is the same is left.

    Args:
        study: With a `config`.
        root: Folder of all runs.

    Returns:
        The folder of experiments that the study's runs are found in.
    """
    assert study.config is not None, "the study has a config"
    folder = root / EXPERIMENTS / study.name
    of_reference = {**study.config, "data": {**(study.config.get("data") or {}), "split": "reference"}}
    for name, config in ((INLINE, study.config), ("reference", of_reference)):
        content = f"# Written from {study.path}: edit that one.\n"
        content += yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        file = folder / f"{name}.yaml"
        if not file.is_file() or file.read_text(encoding="utf-8") != content:
            with complete_or_absent(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
    return folder
