"""Matrices in bfloat16, vectors in float32."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("bf16", "BF16", "BF16")
