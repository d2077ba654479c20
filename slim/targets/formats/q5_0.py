"""Blocks of 32 numbers, 5.5 bits a number."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("q5_0", "Q5_0", "Q5_0")
