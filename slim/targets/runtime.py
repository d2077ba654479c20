"""Runtimes that serve a model: which shapes of layers each of them takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from slim.core.records import ModelFacts
from slim.models.units import Shape

Freedom = Literal["each layer", "all layers", "as it was"]
"""Whether a count may be another in each layer, must be one for all layers that have attention, or must stay."""
Rule = Callable[[ModelFacts, Shape], str | None]
"""Why a layer of a shape (KV groups, query heads in each) is not served, in words that end a sentence, or None."""


@dataclass(frozen=True)
class Runtime:
    """One runtime, as it was read or tried."""

    name: str
    title: str
    source: str
    """Where this was read or by which test it was seen, and of which version."""
    families: tuple[str, ...] | None = None
    """The model types that it takes; None: every family."""
    heads: Freedom = "each layer"
    """Query heads."""
    groups: Freedom = "each layer"
    """KV heads."""
    without_attention: Literal["yes", "silent", "no"] = "yes"
    """Whether a layer may lack its attention block; "silent": a KV group that adds nothing stays in its place."""
    layers: bool = True
    """Whether whole layers may go."""
    parallel: bool = False
    """Whether it splits a model among devices by heads, to a degree that a target names."""
    rules: tuple[Rule, ...] = ()
    formats: tuple[str, ...] = ()
    """The number formats that it reads, besides that of the stored model."""
    alike: Mapping[str, str] = field(default_factory=dict)
    """The model types whose layers must be alike after all, with the reason of each."""
    form: Literal["folder", "gguf", "nemotron_nas"] = "folder"
    """The form that `slim export` writes; a folder needs no export."""
