"""Matrices in float16, vectors in float32."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("f16", "F16", "F16")
