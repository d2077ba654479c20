"""vLLM, TensorRT-LLM and others by their stock code for `DeciLMForCausalLM`, the class of nemotron-nas."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="nemotron_nas",
    title="nemotron_nas",
    source="vLLM 0.32, vllm/model_executor/models/nemotron_nas.py",
    families=("llama", "mistral"),
    heads="all layers",
    parallel=True,
    formats=("f32", "f16", "bf16", "fp8", "int4"),
    form="nemotron_nas",
)
