"""The tensors of a model as formats see them: their kinds, their shapes, and their place among others."""

from dataclasses import dataclass

KINDS = {
    "embed_tokens": "embedding",
    "embed_in": "embedding",
    "wte": "embedding",
    "lm_head": "head",
    "embed_out": "head",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "qkv_proj": "fused",
    "o_proj": "output",
    "gate_proj": "gate",
    "up_proj": "up",
    "gate_up_proj": "up",
    "down_proj": "down",
}
"""The kind of a matrix by the last word of its module's name; "other" where it makes no difference.

An embedding that is the output head too is of the kind "head".
"""


@dataclass(frozen=True)
class Matrix:
    """A tensor of a pruned model."""

    name: str
    kind: str
    shape: tuple[int, ...]
    index: int = 0
    """Its place among the layers that have one of its kind."""
    of: int = 1
    """How many layers a mixture of types counts for its kind."""
    wide_groups: bool = False
    """Whether the first layer has four query heads or more for each KV head."""

    @property
    def row(self) -> int:
        """The numbers that lie one after another."""
        return self.shape[-1]
