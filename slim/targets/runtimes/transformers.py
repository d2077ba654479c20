"""transformers with the class that a checkpoint carries."""

from slim.targets.runtime import Runtime

RUNTIME = Runtime(
    name="transformers",
    title="transformers",
    source="transformers 5.24, tests/pruning/test_surgery.py",
    formats=("f32", "f16", "bf16"),
)
