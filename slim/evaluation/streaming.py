"""Greedy answers token by token, with the speed of each model's own steps, so that two can stream side by side."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase, RepetitionPenaltyLogitsProcessor

from slim.models.load import Loaded
from slim.models.units import Keep
from slim.pruning.trial import masked


@dataclass(frozen=True)
class Answer:
    """An answer so far."""

    text: str
    tokens: int
    seconds: float
    """Seconds of generation after the first token."""
    first: float
    """Seconds to the first token."""
    finished: bool
    """Whether the model ended the answer itself."""

    @property
    def tokens_per_second(self) -> float | None:
        """Decode throughput; None before the second token."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else None


def prompt_ids(loaded: Loaded, prompt: str) -> torch.Tensor:
    """Return the prompt's token ids, through the model's chat template where it has one.  # (1, T)"""
    if loaded.tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        encoded = loaded.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    else:
        encoded = loaded.tokenizer(prompt, return_tensors="pt")
    return encoded["input_ids"].to(loaded.model.device)  # type: ignore[union-attr, call-overload]


def stream(
    loaded: Loaded,
    prompt: str,
    max_new_tokens: int = 128,
    keep: Keep | None = None,
    repetition_penalty: float = 1.0,
) -> Iterator[Answer]:
    """Yield the greedy answer to `prompt` after each of its tokens, as if pruned to `keep` where that is given.

    Tokens that the answer already holds are less likely by the penalty; those of the prompt are not.
    """
    penalty = RepetitionPenaltyLogitsProcessor(repetition_penalty)
    model, tokenizer = loaded.model, loaded.tokenizer
    stops = set(loaded.stops)
    ids, tokens = prompt_ids(loaded, prompt), []
    cache = DynamicCache(config=model.config)
    first = seconds = 0.0
    for step in range(max_new_tokens):
        began = time.perf_counter()
        with torch.inference_mode(), masked(loaded, keep) if keep else nullcontext():
            logits = model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1).logits
            said: Any = torch.tensor([tokens], dtype=torch.long, device=logits.device)  # (1, T)
            ids = penalty(said, logits[:, -1]).argmax(-1, keepdim=True)  # (1, 1)
        token, spent = int(ids), time.perf_counter() - began
        first, seconds = (spent, 0.0) if step == 0 else (first, seconds + spent)
        if token in stops:
            yield Answer(_text(tokenizer, tokens), len(tokens), seconds, first, True)
            return
        tokens.append(token)
        yield Answer(_text(tokenizer, tokens), len(tokens), seconds, first, False)


def side_by_side(
    models: Sequence[Loaded | tuple[Loaded, Keep]],
    prompt: str,
    max_new_tokens: int = 128,
    repetition_penalty: float = 1.0,
) -> Iterator[tuple[int, Answer]]:
    """Yield the models' answers in turns, a token each, so that all stream at once without slowing another's clock.

    A model with a `Keep` beside it answers as it would pruned to that.
    """
    pairs = [model if isinstance(model, tuple) else (model, None) for model in models]
    streams = {
        index: stream(loaded, prompt, max_new_tokens, keep, repetition_penalty)
        for index, (loaded, keep) in enumerate(pairs)
    }
    while streams:
        for index in list(streams):
            answer = next(streams[index], None)
            if answer is None:
                del streams[index]
            else:
                yield index, answer


def _text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True))
