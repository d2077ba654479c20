"""llama.cpp: the family's own architecture where layers are alike, else `deci`."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="llama.cpp",
    title="llama.cpp",
    source="llama.cpp of October 2026, tests/serving/test_llama_cpp.py",
    families=("llama", "mistral", "qwen2", "qwen3"),
    alike={"qwen3": "its heads' query and key norms have no place in `deci`"},
    formats=(
        "f32",
        "f16",
        "bf16",
        "q8_0",
        "q4_0",
        "q4_1",
        "q5_0",
        "q5_1",
        "q4_k_m",
        "q5_k_m",
        "q6_k",
        "iq4_xs",
    ),
    form="gguf",
)
