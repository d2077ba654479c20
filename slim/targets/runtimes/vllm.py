"""vLLM, by its Transformers backend."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="vllm",
    title="vLLM",
    source="vLLM 0.32, Transformers backend",
    without_attention="silent",
    parallel=True,
    formats=("f32", "f16", "bf16", "fp8", "int4"),
)
