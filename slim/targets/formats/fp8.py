"""Eight bits a number and a scale for 128 rows of 128, as block-wise fp8 checkpoints store them."""

from slim.targets.number_format import Grouped

FORMAT = Grouped(
    "fp8", "fp8 in blocks of 128", bits=8, group=128, rows=128, scale_bytes=4, source="vLLM 0.32, block-wise fp8"
)
