"""The first layers of the bundled model as a model of its own: real weights, for tests of what surrounds a model."""

from pathlib import Path
from typing import Any

from torch import nn

from slim.models.load import load_model

LAYERS = 6


def short_model(folder: Path) -> Path:
    """Save it, and return its folder."""
    loaded = load_model(device="cpu", dtype="float32")
    model: Any = loaded.model
    model.model.layers = nn.ModuleList(list(model.model.layers)[:LAYERS])
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder
