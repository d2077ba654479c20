"""Blocks of 32 numbers, 8.5 bits a number."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("q8_0", "Q8_0", "Q8_0")
