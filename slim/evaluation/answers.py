"""Answers of a model to rows of a task: batched, seeded, greedy by default, and cached, so that runs resume."""

import hashlib
from collections.abc import Collection, Sequence

import numpy as np
import torch
from diskcache import Cache
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
)

from slim.core.cache import Arrays
from slim.core.errors import SlimError
from slim.core.reporter import SILENT, Reporter, Work
from slim.data.batch_runner import run_batches
from slim.data.encode import Batch, Encoded, prompt_tokens
from slim.data.templates import Example
from slim.evaluation.model_answer import ModelAnswer
from slim.evaluation.settings import AnswerSettings
from slim.models.identity import row_cache
from slim.models.load import Loaded

DECODED = 4.0
"""Cost of a generated token, in tokens of a prompt: decoding reads all weights for a few tokens at a time."""
VERSION = 1
"""Version of the cached answers: raise it when the same settings give other answers."""
ANY_LENGTH = 2**30
"""Tokens of a context without a limit."""


def prompts(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> list[Tensor]:
    """Return the token ids of each row's prompt, through the chat template where there is one.  # (T,) each"""
    return [torch.tensor(prompt_tokens(example, tokenizer), dtype=torch.long) for example in examples]


def context_of(loaded: Loaded) -> int:
    """Return the length of the model's context in tokens, prompt and answer together."""
    return getattr(loaded.model.config, "max_position_embeddings", None) or ANY_LENGTH


def answer(
    loaded: Loaded,
    rows: Sequence[Tensor],
    settings: AnswerSettings,
    stops: Collection[int],
    cache: Cache | None = None,
    reporter: Reporter = SILENT,
    trouble: SlimError | None = None,
) -> tuple[list[ModelAnswer], list[str]]:
    """Return the answer to each of the prompts in `rows` (T,), and notes on what happened on the way.

    A row's answer depends on the row alone, not on which others are in its batch. A prompt that leaves no room for
    `max_new_tokens` in the model's context is not asked. Raises SlimError where a single row does not fit in memory,
    and `trouble`, where it is given, instead of generating an answer that is not cached.
    """
    room = context_of(loaded) - settings.max_new_tokens
    fit = [place for place, row in enumerate(rows) if 0 < len(row) <= room]
    encoded = Encoded(tuple(rows[place] for place in fit), 0)
    work = Work(reporter, max(1, encoded.tokens))
    cached = row_cache(
        cache,
        loaded,
        answers=VERSION,
        stops=sorted(stops),
        settings=settings.model_dump(exclude={"batch_size"}, exclude_none=True),
    )

    def compute(batch: Batch) -> list[Arrays]:
        if trouble is not None:
            raise trouble
        return _generate(loaded, batch, settings, stops)

    step = work.step("Answering")
    found = run_batches(encoded, range(len(fit)), compute, cached, settings.batch_size, "left", step)
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
    """Return the `tokens` of each row's answer and whether it `finished`.

    Of the model's own generation config only the tokens that end an answer count.
    """
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        eos_token_id=sorted(stops) or None,
        pad_token_id=loaded.tokenizer.pad_token_id or 0,
    )
    processors = LogitsProcessorList()
    if (penalty := settings.repetition_penalty or 1) != 1:
        # what the prompt says may be said again: a summary takes names and words from it
        width = batch.ids.shape[1]
        processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=width))
    if settings.temperature:
        prompts = [ids[valid] for ids, valid in zip(batch.ids, batch.valid, strict=True)]
        processors.append(_Draws(prompts, settings))
    model, own = loaded.model, loaded.model.generation_config
    model.generation_config = GenerationConfig()  # settings missing above would be taken from the model's
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
    """Sample by the largest logit: each row adds Gumbel noise of its own, seeded by its prompt (Gumbel 1954)."""

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
