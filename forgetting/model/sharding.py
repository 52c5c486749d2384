from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from forgetting.model.language_model import LanguageModel


def shard_model(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Shard a model's parameters over a mesh's data-parallel dimension, a decoder layer at a time (FSDP2).

    Args:
        model: Whole on every rank.
        mesh: Lightning's `ModelParallelStrategy` makes it, with a dimension `data_parallel`.
    """
    layers = [m for m in model.decoder.modules() if type(m).__name__ in (model.causal_lm._no_split_modules or ())]
    for layer in layers:
        fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
