"""Blocks of 256 numbers, 4.25 bits a number, and 5.5 in the first MLP outputs, and in values that four heads read."""

from slim.targets.number_format import Ggml

FORMAT = Ggml(
    "iq4_xs",
    "IQ4_XS",
    "IQ4_XS",
    better={
        "value": lambda matrix: "Q5_K" if matrix.wide_groups else None,
        "down": lambda matrix: "Q5_K" if matrix.index < matrix.of // 8 else None,
    },
)
