"""Speed and size of models side by side: prefill, decoding, first token, memory, KV cache, load time, file size.

`python -m slim.evaluation.speed SOURCE DEVICE DTYPE ROWS TOKENS STEPS` prints one model's peak memory, which must
be measured in a process of its own.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import logging

from slim.core.errors import InputError, SlimError
from slim.core.hub import snapshot
from slim.core.reporter import SILENT, Reporter
from slim.evaluation.settings import SpeedSettings
from slim.evaluation.speed_record import Footprint, Speed, Timed
from slim.evaluation.timing import in_fresh_process, in_turn, peak_growth
from slim.models.load import Loaded, load_model, locate

WORD = " word"
"""Repeated text of a prompt that is tokenized: at least one token in every vocabulary."""


def tokens(loaded: Loaded, rows: int, length: int) -> Tensor:
    """Return random tokens, as their content does not change the cost.  # (rows, length)"""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(loaded.model.config.vocab_size, (rows, length), generator=generator)
    return ids.to(loaded.model.device)


@torch.inference_mode()
def prefill(loaded: Loaded, ids: Tensor, logits_to_keep: int = 0) -> None:
    """Compute a prompt's keys and values, and the logits of its last positions; 0 keeps those of all."""
    loaded.model(ids, use_cache=True, logits_to_keep=logits_to_keep)


class Decoding:
    """Greedy decoding after a prompt, token by token, all rows at once."""

    def __init__(self, loaded: Loaded, prompt: Tensor, steps: int) -> None:
        self.loaded, self.prompt, self.steps = loaded, prompt, steps
        self.cache = DynamicCache()
        self.bytes = 0
        with torch.inference_mode():
            loaded.model(prompt, cache=self.cache, use_cache=True)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Decode `steps` tokens after the prompt, and crop the cache to the prompt again."""
        ids = self.prompt[:, -1:]
        for _ in range(self.steps):
            logits = self.loaded.model(ids, cache=self.cache, use_cache=True).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
        self.bytes = cache_bytes(self.cache)
        self.cache.crop(-self.steps)


def cache_bytes(cache: DynamicCache) -> int:
    """Return the bytes of all keys and values in `cache`."""
    held = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    return sum(tensor.nbytes for tensor in held if tensor is not None)


@torch.inference_mode()
def first_token(loaded: Loaded, text: str, rows: int, length: int) -> str:
    """Tokenize a prompt, cut at `length` tokens, and return the text of the first generated token."""
    encoded = loaded.tokenizer([text] * rows, return_tensors="pt", truncation=True, max_length=length)
    ids = encoded["input_ids"].to(loaded.model.device)  # type: ignore[union-attr]
    logits = loaded.model(ids, use_cache=True, logits_to_keep=1).logits
    return str(loaded.tokenizer.decode(logits[0, -1].argmax()))


def measure_speed(
    loaded: Mapping[str, Loaded], settings: SpeedSettings, reporter: Reporter = SILENT
) -> dict[str, list[Speed]]:
    """Return the speed of each model at each batch size; the first is the original that the others are compared with.

    All are timed in one run, in turn. Raises InputError for a prompt longer than a model reads.
    """
    check_speed_settings(loaded, settings)
    total = 3 * len(loaded) * len(settings.batch_sizes) * (settings.repeats + 1)
    done = iter(range(1, total + 1))

    def ran() -> None:
        reporter.progress(next(done), total, "Timing")

    found: dict[str, list[Speed]] = {name: [] for name in loaded}
    for rows in settings.batch_sizes:
        ids = {name: tokens(one, rows, settings.tokens) for name, one in loaded.items()}
        decoding = {name: Decoding(one, ids[name], settings.steps) for name, one in loaded.items()}
        filling = {name: partial(prefill, one, ids[name], 1) for name, one in loaded.items()}
        starting = {
            name: partial(first_token, one, WORD * settings.tokens, rows, settings.tokens)
            for name, one in loaded.items()
        }
        filled, started = (in_turn(each, settings.repeats, ran) for each in (filling, starting))
        decoded = in_turn(decoding, settings.repeats, ran)
        prompt, new = rows * settings.tokens, rows * settings.steps
        for name in loaded:
            found[name].append(
                Speed(
                    rows=rows,
                    prefill=_timed(filled, name, lambda seconds, count=prompt: count / seconds),
                    decode=_timed(decoded, name, lambda seconds, count=new: count / seconds),
                    first_token=_timed(started, name, float),
                    cache_bytes=decoding[name].bytes,
                )
            )
    return found


def footprints(
    loaded: Mapping[str, Loaded], settings: SpeedSettings, device: str, dtype: str, reporter: Reporter = SILENT
) -> dict[str, Footprint]:
    """Return the footprint of each model; the first is the original.

    Loading is timed in turn, and memory measured in a process for each.
    """
    sources = {name: one.facts.source for name, one in loaded.items()}
    loading = {name: partial(load_model, source, device=device, dtype=dtype) for name, source in sources.items()}
    seconds = in_turn(loading, settings.repeats)
    found = {}
    for place, (name, source) in enumerate(sources.items()):
        reporter.progress(place, len(sources), "Measuring memory")
        found[name] = Footprint(
            file_bytes=file_bytes(source),
            load=_timed(seconds, name, float),
            peak_bytes=_peak_apart(source, device, dtype, settings),
        )
    return found


def file_bytes(source: str) -> int:
    """Return the bytes of the files of a model's weights."""
    place = Path(locate(source))
    folder = place if place.is_dir() else snapshot(str(place))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def peak_bytes(source: str, device: str, dtype: str, rows: int, length: int, steps: int) -> int:
    """Return the peak memory in bytes of loading, prefill and decoding, on the model's device."""
    held: list[Loaded] = []

    def run() -> None:
        held.append(load_model(source, device=device, dtype=dtype))
        Decoding(held[0], tokens(held[0], rows, length), steps)()

    growth = peak_growth(run)
    return torch.cuda.max_memory_allocated(held[0].model.device) if held[0].model.device.type == "cuda" else growth


def _peak_apart(source: str, device: str, dtype: str, settings: SpeedSettings) -> int:
    numbers = (max(settings.batch_sizes), settings.tokens, settings.steps)
    try:
        return int(in_fresh_process("slim.evaluation.speed", (source, device, dtype, *map(str, numbers))))
    except (CalledProcessError, ValueError, IndexError) as error:
        raise SlimError(
            f"model={source!r}: its memory could not be measured in a process of its own; choose a smaller batch size."
        ) from error


def _timed(seconds: Mapping[str, list[float]], name: str, figure: Callable[[float], float]) -> Timed:
    original = seconds[next(iter(seconds))]
    ratios = [one / mine for one, mine in zip(original, seconds[name], strict=True)]
    return Timed(
        value=figure(statistics.median(seconds[name])),
        times=statistics.median(ratios),
        low=min(ratios),
        high=max(ratios),
    )


def check_speed_settings(loaded: Mapping[str, Loaded], settings: SpeedSettings) -> None:
    """Raise InputError for a prompt that leaves no room for the decoded tokens in a model's context."""
    wanted = settings.tokens + settings.steps
    for one in loaded.values():
        limit = getattr(one.model.config, "max_position_embeddings", None)
        if limit and wanted > limit:
            raise InputError(
                f"speed_tokens={settings.tokens}, speed_steps={settings.steps}: {one.facts.source!r} reads at most "
                f"{limit:,} tokens; choose fewer."
            )


if __name__ == "__main__":
    logging.disable_progress_bar()
    source, device, dtype, *numbers = sys.argv[1:]
    print(json.dumps(peak_bytes(source, device, dtype, *map(int, numbers))))
