"""A finished run, for the commands that take it further: its records, its base model and its adapter."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel

from forgetting.corpus.exported_chat import ExportedChat, exported_chat
from forgetting.errors import UserError
from forgetting.evaluation.target import Target, find_target, target_names
from forgetting.model.backbone import Tokenizer, load_backbone, load_tokenizer
from forgetting.model.lora import load_lora
from forgetting.runs.run_facts import RunFacts, read_run


@dataclass(frozen=True)
class TrainedRun:
    """A finished run whose base model is the one that it was trained on.

    Attributes:
        facts: Its records.
        adapter: Its PEFT folder.
        adapter_hash: Of what the adapter computes.
        base: Folder or hub id of the base model.
        revision: Hub revision of the base model.
    """

    facts: RunFacts
    adapter: Path
    adapter_hash: str
    base: str
    revision: str | None

    @property
    def four_bit(self) -> bool:
        """Whether it was trained on a base quantized to NF4."""
        return bool(self.facts.model.get("four_bit"))

    def load_model(self) -> PeftModel:
        """The base model as it was trained on, with the adapter, in evaluation mode on the CPU (4 bits: on the GPU).

        Raises:
            UserError: It cannot be loaded.
        """
        model = self.facts.model
        backbone = load_backbone(self.base, self.revision, model["dtype"], self.four_bit, model.get("attention"))
        return load_lora(backbone, self.adapter)

    def load_tokenizer(self) -> Tokenizer:
        """The base model's tokenizer."""
        return load_tokenizer(self.base, self.revision)

    def chat(self, tokenizer: Tokenizer) -> ExportedChat:
        """The chat template as it was trained on."""
        return exported_chat(self.facts.data["template"], tokenizer)


def find_trained(name: str) -> TrainedRun:
    """Find a finished run, and compare its base model, tokenizer and adapter with what it was trained on.

    Args:
        name: A run's folder (`runs/<experiment>/seed-<n>`).

    Raises:
        UserError: It is no run, several, not finished, or its base model has changed.
    """
    names = target_names(name)
    if len(names) > 1 or names[0] != name:
        raise UserError(f"{name} holds {len(names)} run(s): name one of them ({', '.join(names)}).")
    facts = read_run(Path(name).expanduser())
    target: Target = find_target(str(facts.folder))
    description = target.describe()
    assert target.adapter is not None
    return TrainedRun(facts, target.adapter, description["adapter"]["hash"], target.base, target.revision)
