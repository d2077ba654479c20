"""Blocks of 256 numbers, 4.5 bits a number, and 6.6 in half of the layers' values and MLP outputs."""

from slim.targets.number_format import Ggml, in_half

FORMAT = Ggml(
    "q4_k_m",
    "Q4_K_M",
    "Q4_K",
    better={"value": in_half("Q6_K"), "down": in_half("Q6_K"), "fused": lambda matrix: "Q5_K"},
)
