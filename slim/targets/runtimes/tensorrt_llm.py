"""TensorRT-LLM, by its stock code for nemotron-nas."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="tensorrt_llm",
    title="TensorRT-LLM",
    source="TensorRT-LLM, tensorrt_llm/_torch/models/modeling_nemotron_nas.py",
    families=("llama", "mistral"),
    heads="all layers",
    parallel=True,
    formats=("f16", "bf16", "fp8", "int4"),
    form="nemotron_nas",
)
