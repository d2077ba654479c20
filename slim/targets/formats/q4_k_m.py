"""Blocks of 256 numbers, 4.5 bits a number, and 6.6 in half of the layers' values and MLP outputs."""

from slim.targets.number_format import Ggml, with_more_bits

FORMAT = Ggml(
    "q4_k_m",
    "Q4_K_M",
    "Q4_K",
    better={
        "value": lambda matrix: "Q6_K" if with_more_bits(matrix) else None,
        "down": lambda matrix: "Q6_K" if with_more_bits(matrix) else None,
        "fused": lambda matrix: "Q5_K",
    },
)
