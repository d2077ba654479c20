"""Four bits a number and a scale for 128 of a row, as GPTQ, AWQ and their kernels store them."""

from slim.targets.number_format import Grouped

FORMAT = Grouped("int4", "int4 in groups of 128", bits=4, group=128, source="vLLM 0.32, Marlin kernels")
