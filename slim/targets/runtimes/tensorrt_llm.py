"""TensorRT-LLM, by its stock code for nemotron-nas."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="tensorrt_llm",
    title="TensorRT-LLM",
    source="TensorRT-LLM, tensorrt_llm/_torch/models/modeling_nemotron_nas.py",
    families={"llama": "", "mistral": "without a sliding window"},
    heads="all layers",
    parallel=True,
    formats=("auto", "f16", "bf16", "fp8", "int4"),
    form="nemotron_nas",
)
