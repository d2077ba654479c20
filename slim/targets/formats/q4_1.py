"""Blocks of 32 numbers, 5 bits a number."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("q4_1", "Q4_1", "Q4_1")
