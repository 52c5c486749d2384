"""Algorithm 1 on generated worlds, through the commands that any user runs on any data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from forgetting.artifacts import read_json
from forgetting.cli import build_cli, main
from forgetting.errors import UserError
from forgetting.evaluation.naming import results_name
from forgetting.lab.comparison import AVERAGE, BASE, ROWS, Outcome, Row, Scores
from forgetting.lab.pretraining import one_thread
from forgetting.lab.quality import Detection, detection, known_noise
from forgetting.lab.stages import Stages
from forgetting.lab.world import World, write_world
from forgetting.method.data import ForgettingData
from forgetting.method.store import ScoreStore
from forgetting.paths import CONFIGS, EXPERIMENTS
from forgetting.runs.trainer_cli import TrainerCLI
from forgetting.studies.runs import RunFolders

REFERENCE = "reference"
SUITE = "lab"
POSITIVE_FRACTION = 0.7  # of Forgetting


@dataclass(frozen=True)
class Laboratory:
    """Where everything lies.

    Attributes:
        worlds: Folder of worlds.
        runs: Folder of runs.
        corpora: Folder of prepared corpora.
        rows: What is compared, beside the base.
        options: Overrides for every fit and score, such as `--data.corpus.num_train=100`.
    """

    worlds: Path = Path("worlds")
    runs: Path = Path("runs")
    corpora: Path = Path("corpora")
    rows: Sequence[Row] = ROWS
    options: Sequence[str] = ()

    @property
    def stages_per_world(self) -> int:
        """World, corpus, reference, scores, the base's evaluation; a fit and an evaluation a row."""
        return 5 + 2 * len(self.rows)

    def run(self, world: World, stages: Stages) -> Outcome:
        """Make a world and every row of the comparison in it; what is there already is not made again.

        Args:
            world: What to make.
            stages: Told about each stage.
        """
        with one_thread():
            return self._run(world, self.worlds / str(world.seed), stages)

    def _run(self, world: World, folder: Path, stages: Stages) -> Outcome:
        with stages.stage(f"world {world.seed} · sources, benchmarks, base model"):
            write_world(world, folder, stages.step)
        with stages.stage(f"world {world.seed} · prepare"):
            main(["prepare", *self._arguments(REFERENCE, folder)])
        self._trainer("fit", REFERENCE, folder, stages)
        store = self._trainer("score", REFERENCE, folder, stages)
        base = folder / "base"
        results = RunFolders(self.runs).backbone(base.as_posix())
        scores = {BASE: self._evaluate(base, results, folder, BASE, stages)}
        for row in self.rows:
            run = self._trainer("fit", row.experiment, folder, stages).run.folder
            scores[row.experiment] = self._evaluate(run, run, folder, row.experiment, stages)
        return Outcome(world.seed, scores, self._detection(store, folder))

    def _arguments(self, experiment: str, world: Path) -> list[str]:
        files = [experiments_folder() / f"{experiment}.yaml", world / "world.yaml"]
        given = [part for file in files for part in ("--config", str(file))]
        quiet = "--trainer.enable_progress_bar=false"
        return [*given, f"--run.root={self.runs}", f"--data.corpora={self.corpora}", quiet, *self.options]

    def _trainer(self, command: str, experiment: str, world: Path, stages: Stages) -> TrainerCLI:
        with stages.stage(f"world {world.name} · {command} {experiment}"):
            return build_cli([command, *self._arguments(experiment, world)])

    def _evaluate(self, target: Path, output: Path, world: Path, name: str, stages: Stages) -> Scores:
        with stages.stage(f"world {world.name} · evaluate {name}"):
            suite = world / "suite.yaml"
            main(
                ["evaluate", str(target), "--suite", str(suite), "--output", str(output), "--device", "cpu", "--quiet"]
            )
        content = read_json(output / results_name(SUITE, "corrected"))
        columns = {name: column["value"] for name, column in content["columns"].items()}
        return {**columns, AVERAGE: content["average"]}

    def _detection(self, scored: TrainerCLI, world: Path) -> Detection:
        """Of the command that scored the corpus: its data module and its run's store."""
        data = scored.datamodule
        assert isinstance(data, ForgettingData)
        corpus, tokens = data.open_corpus()
        kinds = known_noise(corpus, tokens.split("train"), world / "sources")
        return detection(ScoreStore.open(scored.run.scores), kinds, POSITIVE_FRACTION)


def experiments_folder() -> Path:
    """The folder of the lab's experiments: here, or where the package's configurations are.

    Raises:
        UserError: It is in neither place.
    """
    places = [Path(EXPERIMENTS) / "lab", CONFIGS.parent / EXPERIMENTS / "lab"]
    for place in places:
        if (place / f"{REFERENCE}.yaml").is_file():
            return place
    raise UserError(
        f"The lab's experiments are neither in {places[0]} (from {Path.cwd()}) nor in {places[1]}. "
        "Run the command in a copy of the repository."
    )
