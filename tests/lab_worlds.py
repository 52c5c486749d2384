"""A world that is made in a second: few items, and a base model of a few thousand parameters."""

from forgetting.lab.language import Size
from forgetting.lab.pretraining import Pretraining
from forgetting.lab.world import World

SMALL = World(
    seed=7,
    size=Size(entities=6, words=6, numbers=4),
    num_distinct=200,
    pretraining=Pretraining(hidden=32, layers=1, heads=2, steps=3, documents=8),
)
