"""The files that `new` writes: a base with data and model, four short experiments, and their study."""

import shlex
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
import yaml

from forgetting.arguments import is_number, read_yaml
from forgetting.paths import CONFIGS, EXPERIMENTS

PAPER = read_yaml(CONFIGS / "paper.yaml")["data"]
"""What an experiment does not say: template, lengths, batches, and the sizes that more data does not raise."""


@dataclass(frozen=True)
class Setup:
    """What the files hold.

    Attributes:
        model: The base model.
        folder: Where they are written, below `experiments/`.
        sources: The corpus's sources, by name.
        num_distinct: Examples without duplicates.
        max_length: Tokens of a sequence.
    """

    model: str
    folder: Path
    sources: dict[str, dict[str, Any]]
    num_distinct: int
    max_length: int

    @property
    def name(self) -> str:
        """The name of the folder, below `experiments/`."""
        return self.folder.relative_to(EXPERIMENTS).as_posix()

    @property
    def num_validation(self) -> int:
        """A twentieth of the examples, at most as many as in `paper.yaml`."""
        return min(PAPER["corpus"]["num_validation"], max(1, self.num_distinct // 20))

    @property
    def num_reference(self) -> int:
        """A sixth of the others, as in the paper, and at most as many."""
        return min(PAPER["corpus"]["num_reference"], max(1, (self.num_distinct - self.num_validation) // 6))

    @property
    def num_train(self) -> int:
        """All others."""
        return self.num_distinct - self.num_validation - self.num_reference

    def sizes(self) -> str:
        """The sizes in a line."""
        steps = [ceil(number / PAPER["batch_size"]) for number in (self.num_train, self.num_reference)]
        return (
            f"{self.num_distinct:,} distinct examples: {self.num_train:,} train ({steps[0]:,} optimizer steps of "
            f"{PAPER['batch_size']}), {self.num_reference:,} reference ({steps[1]:,}), "
            f"{self.num_validation:,} validation"
        )

    def ending(self) -> str:
        """What was written, and the commands that follow."""
        run, experiment = ["python", "-m", "forgetting"], ["--config", str(self.folder / "forgetting.yaml")]
        prepare, probe = [*run, "prepare", *experiment], [*run, "probe", *experiment]
        table = [*run, "table", str(self.folder / "study.yaml"), "--run"]
        return (
            f"wrote {self.folder}: {', '.join(files_of(self))}\n"
            f"count the corpus in tokens:\n  {shlex.join(prepare)}\n"
            f"find out which score sees what is wrong in such data, by planting noise:\n  {shlex.join(probe)}\n"
            f"train every run and print the table (stopped, it resumes):\n  {shlex.join(table)}"
        )


def files_of(setup: Setup) -> dict[str, str]:
    """The text of each file, by its name in the folder."""
    base = (setup.folder / "base.yaml").as_posix()
    return {
        "base.yaml": _base(setup),
        "reference.yaml": REFERENCE_FILE.format(name=setup.name, base=base),
        "full.yaml": FULL.format(name=setup.name, base=base),
        "ignoring.yaml": IGNORING.format(name=setup.name, base=base),
        "forgetting.yaml": FORGETTING.format(name=setup.name, base=base),
        "study.yaml": STUDY.format(
            name=setup.name, title=_scalar(setup.name), group=_scalar(Path(setup.model).name or setup.model)
        ),
    }


REFERENCE_FILE = """\
# {name} · the reference model, trained on D_ref.
# Every response token of D_train is scored by its nll under the base model and under this one.
base: {base}
data:
  split: reference
"""

FULL = """\
# {name} · Full Tokens: standard fine-tuning, on every response token.
base: {base}
data:
  positive_fraction: all
"""

IGNORING = """\
# {name} · Ignoring: trains on the top-ρ fraction of the response tokens by score, and leaves the others out.
base: {base}
data:
  positive_fraction: 0.7            # ρ
"""

FORGETTING = """\
# {name} · Forgetting: trains on the top-ρ fraction of the response tokens by score, and unlearns the others.
base: {base}
model:
  objective:
    class_path: Forgetting
    init_args: {{t_min: 1.0e-4, t_max: 0.25}}   # t_max: the weight of unlearning at the end of training
data:
  positive_fraction: 0.7            # ρ
"""

STUDY = """\
# The comparison of these experiments: `python -m forgetting table` prints it, and with --run runs what is missing.
title: {title}
columns:
  - {{name: Held-out nll, metric: validation/nll, decimals: 4}}
  - {{name: Minutes, cost: fit}}
# For benchmarks name a suite, or write one (docs/evaluation.md), and add its columns above.
# suite: main
seeds: 3                            # runs of each row; --seeds 1 for a first look
groups:
  - name: {group}
    rows:
      - {{name: Full Tokens, run: {name}/full}}
      - {{name: Ignoring, run: {name}/ignoring}}
      - {{name: Forgetting, run: {name}/forgetting}}
      # Another ρ needs no file of its own:
      # - {{name: "Forgetting, ρ = 0.5", run: {name}/forgetting, set: {{data.positive_fraction: 0.5}}}}
      # Nor does another score, such as the best one of docs/results/smollm2.md; `probe` says which to take:
      # - name: Ignoring, prompt fit without boilerplate
      #   run: {name}/ignoring
      #   set:
      #     data.promptless: true
      #     data.score: {{class_path: NoBoilerplate, init_args: {{score: {{class_path: PromptFit}}}}}}
    compare: [[Forgetting, Ignoring], [Forgetting, Full Tokens]]
"""


def _base(setup: Setup) -> str:
    is_on_gpu = torch.cuda.is_available()
    if is_on_gpu:
        trainer = "trainer:\n  devices: 1                        # several: see docs/distributed.md\n"
        dtype = ""
    else:
        trainer = (
            "# No GPU was found here. On a machine with one, remove the lines that say so.\n"
            "trainer:\n"
            "  accelerator: cpu                  # no GPU\n"
            "  devices: 1\n"
            "  precision: 32-true                # no GPU: bf16 is slow on most CPUs\n"
        )
        dtype = "  dtype: float32                    # no GPU\n"
    length = ""
    if setup.max_length != PAPER["max_length"]:
        length = f"  max_length: {setup.max_length:<22}# the model's positions; longer examples are cut\n"
    sources = indent(_block(setup.sources), " " * 6)
    return (
        f"# What the experiments in {EXPERIMENTS}/{setup.name} share: each names this file as its `base`.\n"
        "# Other settings are those of configs/paper.yaml. Paths are relative to where commands are run.\n"
        f"{trainer}"
        "model:\n"
        f"  backbone: {_scalar(setup.model)}\n"
        f"{dtype}"
        "data:\n"
        "  corpus:\n"
        "    sources:                        # every key of a source: docs/corpus.md\n"
        f"{sources}"
        f"    # All of {setup.num_distinct:,} distinct examples. D_ref trains the reference, D_val is held out.\n"
        f"    num_train: {setup.num_train}\n"
        f"    num_reference: {setup.num_reference}\n"
        f"    num_validation: {setup.num_validation}\n"
        f"{length}"
    )


class _Dumper(yaml.SafeDumper):
    """Templates in double quotes: a line break in them is then a backslash and an n.

    So are numbers: a configuration's loader reads 1e5 as one, which PyYAML writes as it is.
    """


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if set(text) & set("\n{}") or is_number(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _block(content: Any) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)


def _scalar(text: str) -> str:
    return _block([text]).removeprefix("- ").strip()
