"""Answers of a model to rows of a task: batched, seeded, greedy by default, and kept, so that a stopped run goes on."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import torch
from diskcache import Cache
from pydantic import Field
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from slim.core.cache import Arrays, RowCache
from slim.core.errors import SlimError
from slim.core.progress import Progress, silent
from slim.core.records import Record
from slim.data.batch_runner import Work, run_batches
from slim.data.encode import Batch, Encoded, prompt_tokens
from slim.data.templates import Example
from slim.models.load import Loaded

VERSION = 1
"""Of what is kept: raise it when the same settings give other answers."""
ANY_LENGTH = 2**30


class AnswerSettings(Record):
    """What a person chooses for the answers. A temperature of 0 is greedy."""

    max_new_tokens: int = Field(default=128, ge=1, description="tokens at which an answer is cut")
    batch_size: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    seed: int = Field(default=0, ge=0, description="of what is drawn where the temperature is above 0")


class ModelAnswer(Record):
    """What a model says to one row; `failure` is why it was not asked."""

    text: str = ""
    tokens: int = Field(default=0, ge=0, description="generated, without the one that ends the answer")
    finished: bool = Field(default=False, description="whether the model ended by itself")
    failure: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether the answer was cut at the most tokens it may have."""
        return self.failure is None and not self.finished


def prompts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """The token ids that ask for the answer of each row, through the chat template where there is one.  # (T,) each"""
    return [torch.tensor(prompt_tokens(example, tokenizer), dtype=torch.long) for example in examples]


def stops_of(loaded: Loaded) -> tuple[int, ...]:
    """The tokens that end an answer: those of the model's generation config and the tokenizer's own."""
    settings = loaded.model.generation_config
    named = settings.eos_token_id if settings is not None else None
    found = [*(named if isinstance(named, list) else [named]), loaded.tokenizer.eos_token_id]
    return tuple(sorted({int(token) for token in found if isinstance(token, int)}))


def context_of(loaded: Loaded) -> int:
    """Tokens of prompt and answer together that the model was made for."""
    return getattr(loaded.model.config, "max_position_embeddings", None) or ANY_LENGTH


def answer(
    loaded: Loaded,
    rows: Sequence[Tensor],
    settings: AnswerSettings,
    stops: Collection[int],
    cache: Cache | None = None,
    progress: Progress = silent,
    trouble: SlimError | None = None,
) -> tuple[list[ModelAnswer], list[str]]:
    """The answer to each of the prompts in `rows` (T,), and notes on what happened on the way.

    A row's answer depends on the row alone, not on which others are in its batch. A prompt that leaves no room for
    `max_new_tokens` in the model's context is not asked. Raises SlimError where a single row does not fit in memory,
    and `trouble`, where it is given, instead of generating what is not known yet.
    """
    room = context_of(loaded) - settings.max_new_tokens
    fit = [place for place, row in enumerate(rows) if 0 < len(row) <= room]
    encoded = Encoded(tuple(rows[place] for place in fit), 0)
    work = Work(progress, max(1, encoded.tokens))
    kept = RowCache(
        cache if loaded.facts.fingerprint else None,
        answers=VERSION,
        model=loaded.facts.fingerprint,
        config=loaded.model.config.to_json_string(use_diff=False),
        dtype=str(loaded.model.dtype),
        device=loaded.model.device.type,
        stops=sorted(stops),
        settings=settings.model_dump(exclude={"batch_size"}),
    )

    def advance(tokens: int, known: bool) -> None:
        work.advance(tokens, "Answering", known)

    def compute(batch: Batch) -> list[Arrays]:
        if trouble is not None:
            raise trouble
        return _generate(loaded, batch, settings, stops)

    found = run_batches(
        encoded,
        range(len(fit)),
        compute,
        kept,
        settings.batch_size,
        "left",
        advance,
        work.note,
    )
    answers = [_refused(len(row), room) for row in rows]
    for place, arrays in zip(fit, found, strict=True):
        tokens = arrays["tokens"].tolist()
        text = str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        answers[place] = ModelAnswer(text=text, tokens=len(tokens), finished=bool(arrays["finished"]))
    return answers, work.notes


def _refused(length: int, room: int) -> ModelAnswer:
    if not length:
        return ModelAnswer(failure="the prompt is empty")
    return ModelAnswer(failure=f"the prompt is longer than the {max(0, room):,} tokens that the context leaves for it")


@torch.inference_mode()
def _generate(loaded: Loaded, batch: Batch, settings: AnswerSettings, stops: Collection[int]) -> list[Arrays]:
    """`tokens` of each row's answer and whether it `finished`. No setting of the model's own but where it ends."""
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stops) or None,
        pad_token_id=loaded.tokenizer.pad_token_id or 0,
    )
    processors = LogitsProcessorList()
    if settings.temperature:
        prompts = [ids[valid] for ids, valid in zip(batch.ids, batch.valid, strict=True)]
        processors.append(_Draws(prompts, settings))
    model, own = loaded.model, loaded.model.generation_config
    model.generation_config = GenerationConfig()  # what is not set above would be taken from the model's
    try:
        inputs = batch.inputs(model.device)
        ids = model.generate(**inputs, generation_config=config, logits_processor=processors)  # type: ignore[operator]
    finally:
        model.generation_config = own
    generated = ids[:, batch.ids.shape[1] :]  # (B, N)
    return [_until_stop(row, stops) for row in generated.cpu().numpy()]


def _until_stop(row: np.ndarray, stops: Collection[int]) -> Arrays:
    ends = np.flatnonzero(np.isin(row, list(stops)))
    finished = len(ends) > 0
    return {"tokens": row[: ends[0]] if finished else row, "finished": np.array(finished)}


class _Draws(LogitsProcessor):
    """Makes the largest logit a sample: each row adds Gumbel noise of its own, seeded by what it asks (Gumbel 1954)."""

    def __init__(self, prompts: Sequence[Tensor], settings: AnswerSettings) -> None:
        self.temperature = settings.temperature
        self.generators = []
        for prompt in prompts:
            digest = hashlib.sha256(f"{settings.seed}/".encode() + prompt.numpy().tobytes()).digest()
            self.generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True)))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        width = scores.shape[-1]
        noise = torch.stack([torch.rand(width, generator=one, dtype=torch.float64) for one in self.generators])
        gumbel = -torch.log(-torch.log(noise.clamp(1e-300, 1 - 1e-16)))  # (B, V)
        return scores / self.temperature + gumbel.to(scores)
