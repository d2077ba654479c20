"""Blocks of 256 numbers, 5.5 bits a number, and 6.6 in half of the layers' values and MLP outputs."""

from slim.targets.number_format import Ggml, in_half

FORMAT = Ggml(
    "q5_k_m",
    "Q5_K_M",
    "Q5_K",
    better={"value": in_half("Q6_K"), "down": in_half("Q6_K"), "fused": lambda matrix: "Q6_K"},
)
