"""Matrices in float32, vectors in float32."""

from slim.targets.number_format import Ggml

FORMAT = Ggml("f32", "F32", "F32")
