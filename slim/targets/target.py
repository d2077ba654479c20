"""A target: a runtime, a number format and a degree of parallelism, and what of a model it takes."""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from slim.core.errors import InputError
from slim.core.records import ModelFacts
from slim.models.units import Shape
from slim.targets import formats, runtimes
from slim.targets.matrices import Matrix
from slim.targets.number_format import NumberFormat
from slim.targets.runtime import Freedom, Runtime

AUTO = "auto"
"""The number format of the stored model."""


@dataclass(frozen=True)
class Target:
    """Where a model will run. `format` is None where its numbers stay as they are stored."""

    runtime: Runtime
    format: NumberFormat | None = None
    degree: int = 1
    """Devices among which each layer's heads are split."""

    @property
    def name(self) -> str:
        """The text that `target` reads."""
        settings = [self.format.name] if self.format else []
        settings += [f"tp={self.degree}"] if self.degree > 1 else []
        return ":".join([self.runtime.name, ",".join(settings)]).rstrip(":")

    @property
    def title(self) -> str:
        """The target in words."""
        words = [self.runtime.title, *([self.format.title] if self.format else [])]
        return " ".join(words) + (f" on {self.degree} devices" if self.degree > 1 else "")

    def heads(self, facts: ModelFacts) -> Freedom:
        """Whether the number of query heads may differ from layer to layer."""
        return "all layers" if facts.model_type in self.runtime.alike else self.runtime.heads

    def groups(self, facts: ModelFacts) -> Freedom:
        """Whether the number of KV heads may."""
        return "all layers" if facts.model_type in self.runtime.alike else self.runtime.groups

    def without_attention(self, facts: ModelFacts) -> bool:
        """Whether a layer may lack its attention block."""
        return self.runtime.without_attention != "no" and facts.model_type not in self.runtime.alike

    def why_not_model(self, facts: ModelFacts) -> str | None:
        """Return why it takes no plan of a model at all; None where it does."""
        families = self.runtime.families
        if families is None or facts.model_type in families:
            return None
        return f"{self.runtime.title} takes {', '.join(families)} pruned, and this is {facts.model_type}"

    def why_not(self, facts: ModelFacts, shape: Shape) -> str | None:
        """Return which rule a layer of a shape (KV groups, query heads in each) breaks; None where it breaks none."""
        groups, queries = shape[0], shape[0] * shape[1]
        t = self.degree
        if t > 1 and queries % t:
            return f"{t} devices need a multiple of {t} query heads in each layer, not {queries}"
        if t > 1 and groups % t and t % groups:
            return f"{groups} KV heads cannot be split among {t} devices"
        for rule in self.runtime.rules:
            if reason := rule(facts, shape):
                return reason
        for name, whole, freedom in (
            ("query", facts.heads, self.heads(facts)),
            ("KV", facts.kv_heads, self.groups(facts)),
        ):
            if freedom == "as it was" and {"query": queries, "KV": groups}[name] != whole:
                return f"{self.runtime.title} takes all {whole} {name} heads of a layer or none"
        if self.format is None:
            return None
        read, written = (count * facts.head_dim // t for count in (queries, max(groups, t)))
        output, keys = Matrix("o_proj", "output", (read, read)), Matrix("k_proj", "key", (written, read))
        return self.format.refuses(output) or self.format.refuses(keys)


def target(text: str) -> Target:
    """Return the target that a text such as `vllm:tp=2` or `llama.cpp:q4_k_m` names.

    Raises InputError for a runtime, a format or a setting that is not known.
    """
    name, _, rest = text.partition(":")
    runtime = _known("runtime", name, known_runtimes())
    found: dict[str, Any] = {}
    for setting in filter(None, rest.split(",")):
        key, is_set, value = setting.partition("=")
        if key == "tp" and is_set:
            if not runtime.parallel:
                raise InputError(f"target={text!r}: {runtime.title} splits no layers among devices; leave tp out.")
            if not value.isdecimal() or not 1 <= int(value) <= 1024:
                raise InputError(f"target={text!r}: tp={value} must be a number of devices, for instance tp=2.")
            found["degree"] = int(value)
        elif is_set:
            raise InputError(f"target={text!r}: {key!r} is not a setting: choose tp, or a number format by its name.")
        elif key != AUTO:
            found["format"] = _known("number format", key, {name: known_formats()[name] for name in runtime.formats})
    return Target(runtime, **found)


def suggestions() -> list[str]:
    """Return targets to choose from: each runtime, and each with the formats that its own quantiser makes."""
    found = []
    for runtime in known_runtimes().values():
        kinds = runtime.formats if runtime.form == "gguf" else ()
        found += [runtime.name, *(f"{runtime.name}:{kind}" for kind in kinds)]
        found += [f"{runtime.name}:tp={degree}" for degree in (2, 4, 8) if runtime.parallel]
    return found


def _known(what: str, name: str, among: Mapping[str, Any]) -> Any:
    if name in among:
        return among[name]
    near = get_close_matches(name.lower(), among, 1, 0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"target: {name!r} is not a {what} that is known here: {hint}choose among {', '.join(among)}.")


@cache
def known_runtimes() -> Mapping[str, Runtime]:
    """Return every runtime by its name."""
    return {one.name: one for one in _found(runtimes, "RUNTIME")}


@cache
def known_formats() -> Mapping[str, NumberFormat]:
    """Return every number format by its name."""
    return {one.name: one for one in _found(formats, "FORMAT")}


def _found(package: Any, name: str) -> list[Any]:
    modules = pkgutil.iter_modules(package.__path__)
    return [getattr(importlib.import_module(f"{package.__name__}.{module.name}"), name) for module in modules]
