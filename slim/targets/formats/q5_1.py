"""Blocks of 32 numbers, 6 bits a number."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("q5_1", "Q5_1", "Q5_1")
