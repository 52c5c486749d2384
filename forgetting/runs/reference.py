"""A run and its reference share a corpus and a base model: the scores of the one give the masks of the other."""

from forgetting.arguments import flat
from forgetting.errors import UserError
from forgetting.runs.naming import Naming
from forgetting.runs.run import Run, changes

SHARED = ("model.backbone", "model.revision", "data.corpus", "data.template", "data.max_length")
"""Settings that scores depend on, whatever the adapter."""


def refuse_unshared(run: Run, reference: Run, naming: Naming) -> None:
    """Refuse a trained reference of another corpus or base model, before anything is loaded.

    Args:
        run: The run that needs scores.
        reference: The run that gives them.
        naming: Of `run`.

    Raises:
        UserError: Naming the keys that differ.
    """
    record = reference.provenance()
    if record is None:
        return
    theirs, ours = flat(record["computed"]), flat(run.computed)
    keys = changes(record["computed"], run.computed)
    differing = [key for key in keys if any(key == shared or key.startswith(f"{shared}.") for shared in SHARED)]
    if not differing:
        return
    listed = "; ".join(f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing[:5])
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    raise UserError(
        f"The reference {reference.folder} was trained on another corpus or base model than {run.id} is to be "
        f"({listed}{more}): its scores are not of these tokens. Give {naming.files[0]} and {naming.reference_file} the "
        f"same values; where the reference is to change, move {reference.folder} away and make it again with\n  "
        f"{naming.command_for_reference('fit')}\n  {naming.command_for_reference('score')}"
    )
