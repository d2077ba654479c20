"""What a model will weigh once a plan is executed, from its shapes alone and exact to the parameter."""

from math import prod

from slim.architectures import architecture_of
from slim.cuts import kv_groups, pruned_shapes
from slim.records import Keep, ModelFacts, Size


def everything(facts: ModelFacts) -> Keep:
    """The plan that removes nothing."""
    return (tuple(range(facts.heads)),) * facts.layers


def project(facts: ModelFacts, keep: Keep) -> Size:
    """Parameters, bytes of the stored weights and bytes of KV cache per token of `facts`' model pruned to `keep`."""
    shapes = pruned_shapes(architecture_of(facts.model_type), facts, keep)
    parameters = sum(prod(shape) for shape in shapes.values())
    kv_heads = sum(len(kv_groups(heads, facts.group)) for heads in keep)
    return Size(
        parameters=parameters,
        bytes=parameters * facts.itemsize,
        kv_bytes_per_token=2 * kv_heads * facts.head_dim * facts.itemsize,
    )
