"""Training data: from a corpus and its scores to optimizer steps with positive and negative masks."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from forgetting.corpus.configuration import CorpusConfig
from forgetting.corpus.prepare import Corpus, prepare_corpus
from forgetting.corpus.tokens import TokenizedCorpus, TokenizedSplit, tokenize_corpus, tokenizer_hash
from forgetting.errors import UserError
from forgetting.method.held_out import HeldOutBatch, HeldOutDataset
from forgetting.method.masks import AllPositive, Masks, ScoredSplit, Selected
from forgetting.method.published import PublishedStepDataset, refuse_half_pairs
from forgetting.method.recurrence import recurrence
from forgetting.method.scores import RECURRENCE, LossReduction, Score
from forgetting.method.selection import Granularity, Scope, Selection
from forgetting.method.steps import OptimizerStep, StepDataset, StepSampler, distribute
from forgetting.method.store import ScoreStore, StoredSplit
from forgetting.model.adapter_folder import adapter_hash
from forgetting.model.backbone import backbone_identity, load_configuration, load_tokenizer

SCORED = ("train", "validation")

MICRO_BATCH_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Padded tokens of a micro-batch by device, see docs/performance.md: small on a CPU, where padding costs most."""


def micro_batch_budget(asked: int | None, trainer: Trainer | None) -> int:
    """Padded tokens of a micro-batch: as asked, or by device."""
    device = trainer.strategy.root_device.type if trainer is not None else "cpu"
    return asked or MICRO_BATCH_TOKENS.get(device, MICRO_BATCH_TOKENS["cuda"])


class ForgettingData(LightningDataModule):
    """Optimizer steps over D_train (or D_ref), each token marked positive, negative or neither.

    Masks are derived from the score store, never stored: another ρ or another score needs no new scoring.

    Args:
        corpus: What the corpus is made from.
        backbone: Model whose tokenizer is used (the module's; linked by the command line).
        revision: Hub revision of the base model.
        corpora: Folder that holds prepared corpora.
        template: How messages become text: `tulu` (the paper's), `chat` (the tokenizer's own) or `plain`.
        max_length: Tokens of a sequence; longer ones are truncated on the right.
        split: `train`, or `reference` to train a reference model on D_ref, every response token positive.
        reference: Experiment whose store gives the scores, such as table3/llama-3.2-3b/reference; None is the
            `reference` next to the experiment. The command line finds `store` by it.
        reference_seed: Seed of the reference's run.
        store: Folder of the score store.
        score: By what tokens are ranked; None is the paper's, LossReduction.
        positive_fraction: ρ, or "all": every response token, and no store is needed.
        granularity: Select tokens, or whole sequences by their mean score.
        scope: Rank the tokens of the whole corpus, or those of each example apart.
        forget_fraction: The lowest fraction that is negative, what lies between being ignored; None: all but ρ.
        threshold: Select score > threshold; `positive_fraction` must be null then.
        batch_size: Sequences per optimizer step.
        micro_batch_tokens: Padded tokens of one forward pass; bounds memory and changes nothing else. None: by device.
        shuffle: Draw the order from the run's seed; false keeps the order of the corpus.
        normalization: What the loss takes its means over. None: the optimizer step; `published`: pairs of sequences, as
            the authors' code does (configs/published.yaml).
        num_workers: Processes that build steps.
        shard_size: Examples in a shard of the score store.
        promptless: Store `nll_promptless` too. It is the base's nll of each response token without the prompt, which
            some scores read: a third pass, over the responses alone.
        seed: The run's seed (linked to seed_everything by the command line).
        columns: Stored columns that the objective reads (the module's; linked by the command line).
        needs_negative: Whether the objective unlearns (the module's; linked by the command line).
    """

    def __init__(
        self,
        corpus: CorpusConfig,
        backbone: str,
        revision: str | None = None,
        corpora: Path = Path("corpora"),
        template: Literal["tulu", "chat", "plain"] = "tulu",
        max_length: int = 2048,
        split: Literal["train", "reference"] = "train",
        reference: str | None = None,
        reference_seed: int = 0,
        store: Path | None = None,
        score: Score | None = None,
        positive_fraction: float | Literal["all"] | None = 0.7,
        granularity: Granularity = "token",
        scope: Scope = "corpus",
        forget_fraction: float | None = None,
        threshold: float | None = None,
        batch_size: int = 24,
        micro_batch_tokens: int | None = None,
        shuffle: bool = True,
        normalization: Literal["published"] | None = None,
        num_workers: int = 0,
        shard_size: int = 512,
        promptless: bool = False,
        seed: int = 0,
        columns: Sequence[str] = (),
        needs_negative: bool = False,
    ) -> None:
        super().__init__()
        if split == "reference":
            positive_fraction, forget_fraction, threshold, columns = "all", None, None, ()
        self.selection = Selection(positive_fraction, granularity, scope, forget_fraction, threshold)
        self.score = score or LossReduction()
        self.columns = tuple(columns)
        self._recurrence: dict[str, np.ndarray] = {}
        for name, value, least in (
            ("max_length", max_length, 2), ("batch_size", batch_size, 1), ("micro_batch_tokens", micro_batch_tokens, 1),
            ("shard_size", shard_size, 1), ("num_workers", num_workers, 0), ("reference_seed", reference_seed, 0),
        ):  # fmt: skip
            if value is not None and value < least:
                raise UserError(f"data.{name} is {value}; it must be at least {least}.")
        if normalization == "published":
            refuse_half_pairs(batch_size)
        self.configuration = corpus
        self.backbone, self.revision = backbone, revision
        self.corpora = corpora
        self.template: str = template
        self.max_length = max_length
        self.train_split = split
        self.store_folder = store
        self.batch_size = batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.shuffle = shuffle
        self.normalization = normalization
        self.needs_negative = needs_negative and split == "train"
        self.num_workers = num_workers
        self.shard_size = shard_size
        self.promptless = promptless
        self.seed = seed
        self.score_command = "python -m forgetting score --config <the reference experiment>"
        self.store: ScoreStore | None = None
        self.scored: ScoredSplit | None = None
        self.selected: Selected | None = None
        self._tokens: TokenizedCorpus | None = None
        self.tokenizer_hash = ""
        self.num_token_ids = 0
        self.resumed_steps = 0
        """Optimizer steps in the checkpoint that is about to be restored; the Trainer sets it."""

    @property
    def selects(self) -> bool:
        """Whether scores decide which tokens are positive; else all are."""
        return self.selection.positive_fraction != "all"

    @property
    def reads_store(self) -> bool:
        """Whether a score store is needed: to select, or since the objective reads stored columns."""
        return self.selects or bool(self.columns)

    def open_corpus(self) -> tuple[Corpus, TokenizedCorpus]:
        """The corpus and its tokens, made where they do not exist yet."""
        tokenizer = load_tokenizer(self.backbone, self.revision)
        self.tokenizer_hash = tokenizer_hash(tokenizer)
        self.num_token_ids = len(tokenizer)
        corpus = prepare_corpus(self.configuration, self.corpora)
        return corpus, tokenize_corpus(corpus, tokenizer, self.template, self.max_length)

    def prepare_data(self) -> None:
        """Make the corpus and its tokens where they do not exist yet (one process per node)."""
        self.open_corpus()

    def setup(self, stage: str) -> None:
        """Open the corpus, memory-mapped; for training open the store and select.

        Raises:
            UserError: The store is missing, unfinished, or of another corpus, tokenizer, template, length or base; or
                it lacks a column that the score or the objective reads.
        """
        self.corpus, self._tokens = self.open_corpus()
        self._check_backbone()
        if stage == "fit" and len(self.tokens.split(self.train_split)) == 0:
            raise UserError(
                f"There is nothing to train on: the corpus has no {self.train_split} examples. Raise "
                f"data.corpus.num_{self.train_split}."
            )
        if stage == "predict" or not self.reads_store:
            return
        self.store = self._matching_store()
        train = self.stored("train")
        if missing := [name for name in self.columns if name not in train.columns]:
            raise UserError(
                f"The objective reads {', '.join(missing)}; the score store {self.store.folder} has "
                f"{', '.join(train.columns)}. Name columns that are there."
            )
        if self.selects:
            self.scored = ScoredSplit(train, self.score)
            self.selected = Selected(self.scored, self.selection)

    @property
    def tokens(self) -> TokenizedCorpus:
        """The tokenized corpus, once `setup` has run."""
        assert self._tokens is not None, "setup() has not run"
        return self._tokens

    def _check_backbone(self) -> None:
        """Refuse sequences longer than the backbone's positions and tokens that its embedding has no row for."""
        config = load_configuration(self.backbone, self.revision).get_text_config()
        splits = [self.tokens.split(name) for name in {self.train_split, *SCORED}]
        longest = max((int(split.lengths.max()) for split in splits if len(split)), default=0)
        positions = getattr(config, "max_position_embeddings", None)
        if positions is not None and longest > positions:
            raise UserError(
                f"{self.backbone} has {positions} positions and the corpus has a sequence of {longest} tokens. Set "
                f"data.max_length to {positions} or less."
            )
        if self.num_token_ids > config.vocab_size:  # mostly tokens that no text holds
            highest = max(int(split.input_ids(i).max()) for split in splits for i in range(len(split)))
            if highest >= config.vocab_size:
                raise UserError(
                    f"The tokenizer of {self.backbone} gives token {highest}, but the model's embedding has "
                    f"{config.vocab_size} rows: tokenizer and model do not belong together."
                )

    def identity(self) -> dict[str, Any]:
        """What scores over this corpus depend on, the adapter apart."""
        base = backbone_identity(self.backbone, self.revision)
        return {
            "corpus": self.corpus.content_hash, "tokens": self.tokens.content_hash, "tokenizer": self.tokenizer_hash,
            "template": self.template, "max_length": self.max_length, "base": base["hash"],
        }  # fmt: skip

    def _matching_store(self) -> ScoreStore:
        if self.store_folder is None:
            raise UserError(f"There is no score store: give data.store, or make one with\n  {self.score_command}")
        try:
            store = ScoreStore.open(self.store_folder)
        except UserError as error:
            raise UserError(f"{error} Make it with\n  {self.score_command}") from None
        names = {
            "corpus": "corpus", "tokenizer": "tokenizer", "template": "template", "max_length": "max_length",
            "base": "base model", "tokens": "tokenized corpus",
        }  # fmt: skip
        for key, ours in self.identity().items():
            theirs = store.identity.get(key)
            if theirs != ours:
                raise UserError(
                    f"The score store {store.folder} belongs to another {names[key]}: it was made with {theirs}, this "
                    f"experiment has {ours}. Make the right one with\n  {self.score_command}"
                )
        trained = store.folder.parent / "adapter"  # where the store lies in the run of its reference
        if trained.is_dir() and adapter_hash(trained) != store.identity["adapter"]:
            raise UserError(
                f"The score store {store.folder} was made with another adapter than the one next to it. Remove it "
                f"and score again with\n  {self.score_command}"
            )
        return store

    def stored(self, split: str, also: Collection[str] = ()) -> StoredSplit:
        """The stored columns of a split, and those that its tokens give.

        Args:
            split: Its name.
            also: `recurrence`, where it is asked for though the score does not read it.
        """
        assert self.store is not None, "there is no store"
        tokens = self.tokens.split(split)
        extra = {} if tokens.noise is None else {"noise": tokens.noise}
        if RECURRENCE in {*self.score.columns, *also}:
            if split not in self._recurrence:
                self._recurrence[split] = recurrence(tokens, self.tokens.split("train"))
            extra[RECURRENCE] = self._recurrence[split]
        return self.store.split(split, extra)

    def masks(self, split: TokenizedSplit) -> Masks:
        """A function from an example of `split` to the positive and negative mask of its response tokens."""
        if self.selected is None:
            return AllPositive(split.num_targets)
        return self.selected.masks(ScoredSplit(self.stored(split.name), self.score))

    @property
    def token_budget(self) -> int:
        """Padded tokens of a micro-batch on this device."""
        return micro_batch_budget(self.micro_batch_tokens, self.trainer)

    def train_dataloader(self) -> DataLoader[OptimizerStep]:
        """One item is one optimizer step."""
        split = self.tokens.split(self.train_split)
        trainer = self.trainer
        assert trainer is not None
        stored = self.stored(split.name) if self.columns else None
        make: Callable[..., StepDataset] = StepDataset
        if self.normalization == "published":
            make = partial(PublishedStepDataset, self.batch_size, self.needs_negative)
        dataset = make(
            split, self.masks(split), self.token_budget, trainer.global_rank, trainer.world_size, stored, self.columns
        )
        # Lightning asks for the loader, and starts its workers, before it restores the checkpoint.
        sampler = StepSampler(
            len(split), self.batch_size, self.seed if self.shuffle else None,
            lambda: max(trainer.global_step, self.resumed_steps),
        )  # fmt: skip
        return DataLoader(dataset, sampler=sampler, batch_size=None, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[HeldOutBatch] | list[Any]:
        """D_val in micro-batches, distributed over ranks; labeled where the store has scored it."""
        split = self.tokens.split("validation")
        if len(split) == 0:
            return []
        rank, num_ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        masks = self.masks(split)
        groups = distribute(split.lengths, self.token_budget, num_ranks)[rank]
        labels = [masks(i) for i in range(len(split))]
        dataset = HeldOutDataset(split, labels, groups, is_scored=self.selected is not None)
        return DataLoader(dataset, batch_size=None, num_workers=self.num_workers)
