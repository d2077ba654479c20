"""The tokens at which llama.cpp stops: a GGUF file names three of them, of the end of text, turn and message."""

from collections.abc import Sequence

from gguf import GGUFWriter, Keys

from slim.core.records import StopToken

NAMES = (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)
"""llama.cpp stops at each of these, whatever the text of the token is."""


def add_stops(writer: GGUFWriter, stops: Sequence[StopToken], unused: int | None) -> list[str]:
    """Write the tokens that end an answer in place of those that the tokenizer's own file named; return notes.

    The first is the tokenizer's end token, or the first of all; the template's turn end follows. Without any
    the id of a token that no text has, `unused`, is written: llama.cpp assumes an ordinary word otherwise.
    """
    for name in NAMES:
        writer.kv_data[0].pop(name, None)
    order = sorted(stops, key=lambda one: ("tokenizer" not in one.named_by, "chat template" not in one.named_by))
    ids = [one.id for one in order] or ([] if unused is None else [unused])
    for name, token in zip(NAMES, ids, strict=False):
        writer.add_uint32(name, token)
    if not stops:
        return ["the model names no token that ends an answer, so llama.cpp stops at its limit of tokens only"]
    if left := order[len(NAMES) :]:
        return [f"llama.cpp is not told to stop at {', '.join(one.text for one in left)}: a file names three tokens"]
    return []
