"""Blocks of 32 numbers, 4.5 bits a number."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("q4_0", "Q4_0", "Q4_0")
