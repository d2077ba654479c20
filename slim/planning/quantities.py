"""The quantities of size and speed that a plan changes: what a budget limits, and what tables, forms and board show.

Solver, command line, forms, report and board iterate QUANTITIES. Adding a quantity is a row, and a size model where
none counts it yet (sizes.py).
"""

from dataclasses import dataclass

from slim.planning.record import Size

LOSS = "loss"
"""The limit on the forecast loss, which is a quantity of the model's predictions and not of its size."""


@dataclass(frozen=True)
class Scale:
    """How a number is written from `above` on: in `factor`s called `unit`, with so many digits."""

    above: float
    factor: float
    unit: str
    digits: int


@dataclass(frozen=True)
class Quantity:
    """One quantity, by the name that a budget calls it."""

    name: str
    title: str
    limit: str
    """The label of a limit on it, for a form."""
    field: str
    """The size model that counts it: one of `Size`, or `heads`."""
    unit: str
    scales: tuple[Scale, ...] = ()
    faster: bool = False
    """Whether a limit is how many times as fast at least, where this alone sets the pace, and not how much at most."""
    about: str = ""

    def words(self, value: float) -> str:
        """The number as it is shown."""
        scale = next(scale for scale in reversed(self.scales) if value >= scale.above)
        return f"{value / scale.factor:,.{scale.digits}f} {scale.unit}".rstrip()

    def share(self, limit: float) -> float:
        """The share of the original that a limit allows at most."""
        return 1 / limit if self.faster else limit

    def times_faster(self, before: Size, after: Size) -> float:
        """How many times as fast a plan is where this quantity alone sets the pace."""
        return getattr(before, self.field) / getattr(after, self.field)


QUANTITIES: dict[str, Quantity] = {
    quantity.name: quantity
    for quantity in (
        Quantity("heads", "Query heads", "Heads at most", "heads", "", (Scale(0, 1, "", 0),)),
        Quantity(
            "params",
            "Parameters",
            "Parameters at most",
            "parameters",
            "",
            (Scale(0, 1e6, "M", 1), Scale(1e10, 1e9, "B", 1)),
        ),
        Quantity(
            "bytes",
            "Weights on disk",
            "Bytes on disk at most",
            "bytes",
            "bytes",
            (Scale(0, 1e6, "MB", 1), Scale(1e10, 1e9, "GB", 1)),
        ),
        Quantity(
            "kv",
            "KV cache per token",
            "KV cache at most",
            "kv_bytes_per_token",
            "bytes",
            (Scale(0, 1024, "KiB", 1),),
        ),
        Quantity(
            "flops",
            "Work per token",
            "Work per token at most",
            "flops_per_token",
            "FLOPs",
            (Scale(0, 1e9, "GFLOP", 3), Scale(1e10, 1e9, "GFLOP", 1)),
        ),
        Quantity(
            "prefill",
            "Prefill",
            "Prefill faster at least",
            "flops_per_token",
            "times as fast",
            faster=True,
            about="Where work alone sets the pace of a prompt",
        ),
        Quantity(
            "decode",
            "Decoding",
            "Decoding faster at least",
            "bytes_read_per_token",
            "times as fast",
            faster=True,
            about="Where reading weights and cache alone sets the pace of one row",
        ),
    )
}
SIZES = tuple(one for one in QUANTITIES.values() if not one.faster and one.field in Size.model_fields)
"""The quantities of size that are shown of a plan."""
SPEEDS = tuple(one for one in QUANTITIES.values() if one.faster)
LIMITS = (*QUANTITIES, LOSS)
"""The limits that a budget may have."""


def limit_words(name: str) -> tuple[str, str]:
    """Return the label of a budget's limit, and the unit of its number."""
    if name == LOSS:
        return "Forecast loss at most", "nats/token"
    quantity = QUANTITIES[name]
    if quantity.faster:
        return quantity.limit, f"Times as fast as the original. {quantity.about}."
    return quantity.limit, "Share of the original's, above 0 and at most 1."
