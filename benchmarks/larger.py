"""Calibration of a model whose layers stay in their files: its peak memory, and its time beside layers in memory.

`python -m benchmarks.larger FOLDER [--rows 8] [--pairs 3]` writes a random llama of 3 billion parameters in bfloat16 to
FOLDER, once (6.3 GB), calibrates it in a fresh process with `--layers file`, and prints the most memory that was held.
Then it calibrates the bundled model with both settings in turn, and prints the ratio of the records' seconds.
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.beside import HERE, Build
from benchmarks.measure import machine, table
from slim.models.bundled import NAME, bundled_model
from slim.models.source import CARRIED

LARGE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=3072,
    intermediate_size=8192,
    num_hidden_layers=28,
    num_attention_heads=24,
    num_key_value_heads=8,
    tie_word_embeddings=False,
    max_position_embeddings=8192,
    dtype=torch.bfloat16,
    architectures=["LlamaForCausalLM"],
)
SPREAD = 0.02
"""Standard deviation of random weights, as transformers initializes them."""


def write_large(folder: Path) -> None:
    """Write the large model with the bundled tokenizer, one file per layer and one for the rest."""
    with torch.device("meta"):
        empty = LlamaForCausalLM(LARGE)
    shapes = {name: tuple(parameter.shape) for name, parameter in empty.named_parameters()}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")[2] if name.startswith("model.layers.") else "rest"
        parts.setdefault(part, []).append(name)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for part, names in parts.items():
        save_file(
            {name: _random(shapes[name]) for name in names}, folder / f"part-{part}.safetensors", {"format": "pt"}
        )
    index = {name: f"part-{part}.safetensors" for part, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    for file in bundled_model().iterdir():
        if file.suffix in CARRIED and file.name not in ("config.json", "generation_config.json"):
            shutil.copy(file, folder)
    LARGE.save_pretrained(folder)


def _random(shape: tuple[int, ...]) -> Tensor:
    made = torch.empty(shape, dtype=torch.bfloat16)
    return made.fill_(1) if len(shape) == 1 else made.normal_(0, SPREAD)


def _calibrated(build: Build, model: str, layers: str, rows: int) -> tuple[float, float]:
    """Return the seconds of a calibration's record, and the most bytes that its process held."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "made"
        words = ["calibrate", "--model", model, "--dataset", "bundled:general", "--samples", str(rows)]
        _, held = build.run([*words, "--max-length", "192", "--layers", layers, "--output", str(output)])
        return json.loads((output / "record.json").read_bytes())["seconds"], held


def _lines(build: Build, folder: Path, rows: int, pairs: int) -> Iterator[tuple[str, ...]]:
    seconds, held = _calibrated(build, str(folder), "file", rows)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    yield "random llama", f"{size / 2e9:.2f} billion", "file", f"{seconds:,.0f} s", f"{held / 1e9:.2f} GB", ""
    both = [[_calibrated(build, NAME, layers, 16) for layers in ("memory", "file")] for _ in range(pairs)]
    ratio = statistics.median(stored[0] / kept[0] for kept, stored in both)
    for place, layers in enumerate(("memory", "file")):
        seconds, held = (statistics.median(pair[place][number] for pair in both) for number in (0, 1))
        last = f"{ratio:.2f}" if layers == "file" else ""
        yield NAME, "0.13 billion", layers, f"{seconds:.1f} s", f"{held / 1e9:.2f} GB", last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    if not chosen.folder.exists():
        write_large(chosen.folder)
    with tempfile.TemporaryDirectory() as home:
        lines = list(_lines(Build(HERE, Path(home)), chosen.folder.absolute(), chosen.rows, chosen.pairs))
    head = ("model", "parameters", "layers in", "calibration", "peak memory", "÷ in memory")
    print(machine(), table(head, lines), sep="\n\n")


if __name__ == "__main__":
    main()
