"""The first layers of the bundled model as a model of its own: real weights, for tests of what surrounds a model."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from slim.models import bundled
from slim.models.load import load_model

LAYERS = 6
SHORT_OR_WHOLE = ["short", pytest.param("whole", marks=pytest.mark.release)]
"""Of flows through the pages: every run goes through them with the first layers, a release with all."""


def short_model(folder: Path) -> Path:
    """Save it, and return its folder."""
    loaded = load_model(device="cpu", dtype="float32")
    model: Any = loaded.model
    model.model.layers = nn.ModuleList(list(model.model.layers)[:LAYERS])
    model.config.num_hidden_layers = LAYERS
    model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


def furnish(home: Path, shared: Path, which: str) -> Path:
    """Give a new workspace the bundled model of a `shared` one, or its first layers under its name."""
    home.mkdir()
    if which == "short":
        folder = short_model(home / "models" / bundled.FOLDER)
        (folder / bundled.MARK).write_text(bundled.UNPACKED)
    else:
        (shared / "models").mkdir(parents=True, exist_ok=True)
        (home / "models").symlink_to(shared / "models")
    return home
