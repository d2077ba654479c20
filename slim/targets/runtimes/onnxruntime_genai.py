"""onnxruntime-genai: one number of heads for all layers."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="onnxruntime_genai",
    title="onnxruntime-genai",
    source="onnxruntime-genai 0.18, its model builder",
    heads="all layers",
    groups="all layers",
    without_attention="no",
    formats=("f32", "f16"),
)
