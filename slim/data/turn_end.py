"""Where an answer ends in a row: by the chat template's turn end, else by the tokenizer's end token."""

from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWERS = ("Slim", "Trim it")
"""Two answers that share neither their first nor their last letter, however a template rewrites them."""


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Return the token that the chat template writes after an answer: the first added one that follows the text.

    None where there is no template, where it refuses a plain conversation, or where only ordinary text follows: such
    text occurs inside answers, too.
    """
    text = _after_answer(tokenizer)
    if not text:
        return None
    added = tokenizer.added_tokens_decoder
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    return next((token for token in ids if token in added and str(added[token]).strip()), None)


def end_to_add(tokenizer: "PreTrainedTokenizerBase", templated: bool) -> int | None:
    """Return the token that is added to a row after its answer; None where the row's text ends with one already."""
    end: Any = tokenizer.eos_token_id  # one, whatever its type says
    return None if templated and turn_end(tokenizer) is not None else end


def _after_answer(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text that the chat template writes after an answer: what two conversations end with alike."""
    if not tokenizer.chat_template:
        return ""
    try:
        one, other = (_rendered(tokenizer, answer) for answer in ANSWERS)
    except Exception:  # a template is a program: it fails in as many ways
        return ""
    if one == other:  # it leaves answers out
        return ""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return "".join(letter for letter, _ in alike)[::-1].strip()


def _rendered(tokenizer: "PreTrainedTokenizerBase", answer: str) -> str:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False))
