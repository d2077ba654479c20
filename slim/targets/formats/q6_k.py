"""Blocks of 256 numbers, 6.6 bits a number."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("q6_k", "Q6_K", "Q6_K")
