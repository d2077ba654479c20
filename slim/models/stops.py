"""The tokens that end a model's answer: one set for every part of Slim that generates, trains or writes a model."""

from typing import TYPE_CHECKING, Any

from slim.core.records import NamedBy, StopToken
from slim.data.turn_end import turn_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
NO_END = (
    "the model names no token that ends an answer, so every answer runs to its limit: name one as eos_token_id in its "
    "generation_config.json"
)
"""Note on a model that cannot stop by itself."""


def stop_tokens(
    tokenizer: "PreTrainedTokenizerBase", config: "PreTrainedConfig", generation: "GenerationConfig | None"
) -> tuple[StopToken, ...]:
    """Return every token that the tokenizer, the chat template's turn end, the generation config or the config names.

    Ids beyond the vocabulary are left out, and so is the default of the config's class where the tokenizer does not
    know it as a special token: it is any word of another tokenizer.
    """
    written = ids_of(generation and generation.eos_token_id)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    assumed = {*ids_of(getattr(type(config), "eos_token_id", None))} - special - {*written}
    derived = generation is not None and generation._from_model_config
    sources: list[tuple[NamedBy, Sequence[int]]] = [
        ("tokenizer", ids_of(tokenizer.eos_token_id)),
        ("chat template", ids_of(turn_end(tokenizer))),
        ("config" if derived else "generation config", written),
        ("config", [token for token in ids_of(getattr(config, "eos_token_id", None)) if token not in assumed]),
    ]
    named: dict[int, list[NamedBy]] = {}
    for source, tokens in sources:
        for token in tokens:
            if 0 <= token < config.vocab_size and source not in named.setdefault(token, []):
                named[token].append(source)
    return tuple(
        StopToken(id=token, text=str(tokenizer.convert_ids_to_tokens(token) or f"token {token}"), named_by=tuple(by))
        for token, by in named.items()
    )


def end_notes(stops: "Sequence[object]") -> list[str]:
    """Return what the user should know of a model with these `stops`: nothing where it can stop by itself."""
    return [] if stops else [NO_END]


def stop_at(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> tuple[StopToken, ...]:
    """Make the model, its tokenizer, and whatever is saved of both, name every token that ends an answer; return them.

    transformers, its server, lm-evaluation-harness and vLLM stop where the generation config says, and trainings teach
    the tokenizer's end token.
    """
    stops = stop_tokens(tokenizer, model.config, model.generation_config)
    ids = [one.id for one in stops]
    settings: Any = model.generation_config
    settings.eos_token_id = ids[0] if len(ids) == 1 else ids or None
    settings._from_model_config = None  # else transformers would say that the config names them
    if stops and tokenizer.eos_token_id is None:
        tokenizer.eos_token = stops[0].text
    return stops


def ids_of(named: Any) -> "list[int]":
    """Return the tokens of a setting that is one id, a list of them or nothing."""
    found = named if isinstance(named, list | tuple) else [named]
    return [int(token) for token in found if isinstance(token, int) and not isinstance(token, bool)]
