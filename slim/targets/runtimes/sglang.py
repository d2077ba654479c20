"""SGLang, by its stock code for nemotron-nas."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="sglang",
    title="SGLang",
    source="SGLang 0.5, python/sglang/srt/models/nemotron_nas.py",
    families=("llama", "mistral"),
    heads="all layers",
    groups="all layers",
    parallel=True,
    formats=("f16", "bf16", "fp8", "int4"),
    form="nemotron_nas",
)
