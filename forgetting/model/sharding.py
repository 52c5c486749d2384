"""FSDP2: the model's parameters distributed over the ranks, each of which trains on its part of a step."""

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from forgetting.errors import UserError
from forgetting.model.language_model import LanguageModel


class ShardedStrategy(ModelParallelStrategy):
    """Data parallel over all ranks, however many there are, each of which holds a part of the parameters.

    The Trainer knows it as `strategy: sharded`. Lightning's own defaults would be tensor parallel within a node, and
    checkpoints that are folders.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Lay out the ranks, whose number is known by now."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


StrategyRegistry.register("sharded", ShardedStrategy, description="FSDP2 over all ranks")


def shard_model(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Shard a model's parameters over a mesh's data-parallel dimension, a decoder layer at a time (FSDP2).

    Args:
        model: Whole on every rank.
        mesh: `ShardedStrategy` makes it, with a dimension `data_parallel`.

    Raises:
        UserError: The mesh is tensor parallel: each rank would be trained alone on its part of a step.
    """
    names = mesh.mesh_dim_names or ()
    if "tensor_parallel" in names and mesh["tensor_parallel"].size() > 1:
        raise UserError(
            f"tensor_parallel_size is {mesh['tensor_parallel'].size()}, and this code has no tensor parallelism: ranks "
            "share the sequences of a step. Use --trainer.strategy sharded."
        )
    layers = [m for m in model.decoder.modules() if type(m).__name__ in (model.causal_lm._no_split_modules or ())]
    for layer in layers:
        fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
