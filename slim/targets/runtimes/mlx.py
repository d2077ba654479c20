"""MLX, by its code for nemotron-nas."""

from slim.core.records import ModelFacts
from slim.models.units import Shape
from slim.targets.runtime import Runtime


def _full_width(facts: ModelFacts, shape: Shape) -> str | None:
    """Its head size is the model's width over the number of heads."""
    width = facts.shapes["model.embed_tokens.weight"][-1]
    return None if shape[0] * shape[1] * facts.head_dim == width else "its query heads must make up the model's width"


RUNTIME = Runtime(
    name="mlx",
    title="MLX",
    source="mlx-lm, mlx_lm/models/nemotron-nas.py",
    families=("llama",),
    heads="as it was",
    rules=(_full_width,),
    formats=("f16", "bf16"),
    form="nemotron_nas",
)
