"""From examples to tokens: templates, truncation, which positions count, and batches."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from slim.core.errors import InputError
from slim.data.encode import Batch, Encoded, batches, encode, messages_of, prompt_tokens, text_of
from slim.data.templates import Example
from tests.pico import pico_tokenizer, random_rows

CHAT = (
    "{% for m in messages %}<bos>{{ m['role'] }}: {{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)
TURNS = Example("Who?", "Me.", (("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Who?")))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte a token."""
    return pico_tokenizer()


def counted(example: Example, tokenizer: PreTrainedTokenizerFast, length: int = 999) -> str:
    """The text of the tokens that count where only the answer does."""
    encoded = encode([example], tokenizer, length, "answer")
    return str(tokenizer.decode(encoded.rows[0][encoded.start(0) :]))


def test_rows_are_cut_at_the_limit_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    """Longer than the limit counts, as long as it does not; rows of one token are left out."""
    examples = [Example("", text) for text in ("abcdefghi", "abcdefg", "abcdef", "abc", "a")]
    encoded = encode(examples, tokenizer, 6)
    assert [len(row) for row in encoded.rows] == [6, 6, 6, 3]
    assert (encoded.truncated_rows, encoded.lost_tokens, encoded.left_out) == (2, 4, 1)
    assert encoded.tokens == 21
    assert encoded.starts == (1, 1, 1, 1)
    assert tokenizer.decode(encoded.rows[0]) == "abcdef"
    with pytest.raises(InputError, match="1 row was left out: it has no two tokens"):
        encode(examples[-1:], tokenizer, 6)


def test_without_a_chat_template_the_answer_follows_the_question(tokenizer: PreTrainedTokenizerFast) -> None:
    """On the next line, with the end token behind it; a row that asks nothing is its text."""
    example = Example("Why?", "So.")
    assert text_of(example, tokenizer) == "Why?\nSo."
    (row,) = encode([example], tokenizer, 99).rows
    assert row.tolist() == tokenizer("Why?\nSo.<eos>")["input_ids"]
    (row,) = encode([example], tokenizer, 99, ended=False).rows
    assert row.tolist() == tokenizer("Why?\nSo.")["input_ids"]
    (row,) = encode([Example("", "So.")], tokenizer, 99).rows
    assert row.tolist() == tokenizer("So.")["input_ids"]
    assert text_of(Example("", "So."), tokenizer) == "So."
    assert text_of(TURNS, tokenizer) == "Be brief.\nHi.\nHello.\nWho?\nMe."


def test_a_tokenizer_without_a_padding_token_will_do(tokenizer: PreTrainedTokenizerFast) -> None:
    """Rows are padded here, with any token, where no one looks."""
    tokenizer.pad_token = None
    encoded = encode([Example("Why?", "So."), Example("", "abc")], tokenizer, 99)
    (batch,) = batches(encoded, 2)
    assert batch.valid.sum(1).tolist() == [3, 9]


def test_the_chat_template_is_applied_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    """Special tokens once and as such, the model's own text between them, the last line break not learned."""
    tokenizer.chat_template = CHAT
    example = Example("Why?", "So.")
    expected = "<bos>user: Why?<eos>\n<bos>assistant: So.<eos>"
    assert text_of(example, tokenizer) == expected
    (row,) = encode([example], tokenizer, 99).rows
    ids = row.tolist()
    whole = tokenizer.apply_chat_template(messages_of(example), tokenize=True, return_dict=False)
    assert [*ids, whole[-1]] == whole
    assert [ids.count(special) for special in (1, 2)] == [2, 2]
    assert ids[0] == 1
    assert tokenizer.decode(row) == expected
    assert text_of(Example("", "So."), tokenizer) == "So."


def test_a_chat_is_rendered_turn_by_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    """Every turn under its own speaker."""
    tokenizer.chat_template = CHAT
    assert text_of(TURNS, tokenizer).splitlines() == [
        "<bos>system: Be brief.<eos>",
        "<bos>user: Hi.<eos>",
        "<bos>assistant: Hello.<eos>",
        "<bos>user: Who?<eos>",
        "<bos>assistant: Me.<eos>",
    ]
    assert len(messages_of(TURNS, answered=False)) == 4
    assert messages_of(Example("Why?", "So."), answered=False) == [{"role": "user", "content": "Why?"}]


def test_a_chat_template_that_refuses_a_turn_is_quoted(tokenizer: PreTrainedTokenizerFast) -> None:
    """In one sentence."""
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHAT
    )
    with pytest.raises(InputError, match=r"chat template does not take .*no system here"):
        encode([TURNS], tokenizer, 99)


@pytest.mark.parametrize("chat", [None, CHAT])
def test_only_the_answer_counts_where_that_is_chosen(tokenizer: PreTrainedTokenizerFast, chat: str | None) -> None:
    """From its first token on; a row that asks nothing counts as a whole, less its first token."""
    tokenizer.chat_template = chat
    assert counted(Example("Why?", "So."), tokenizer) == "So.<eos>"
    assert counted(TURNS, tokenizer) == "Me.<eos>"
    assert counted(Example("", "So."), tokenizer) == "o."


def test_special_tokens_around_a_row_do_not_hide_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Those that the tokenizer adds itself, at both ends."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[reportAttributeAccessIssue]
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert counted(Example("Why?", "So."), tokenizer) == "So.<eos>"
    assert tokenizer.decode(prompt_tokens(Example("Why?", "So."), tokenizer)) == "<bos>Why?\n"  # not asked after an end


def test_a_token_over_the_border_counts_to_the_answer() -> None:
    """Its prediction is one of the answer's first letter."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: place for place, piece in enumerate([*alphabet, "ĊS", "?ĊS"])}
    backend = Tokenizer(BPE(pieces, [("Ċ", "S"), ("?", "ĊS")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert counted(Example("Why?", "So."), tokenizer) == "?\nSo."
    assert counted(Example("Why", "So."), tokenizer) == "\nSo."
    assert encode([Example("?", "So.")], tokenizer, 9, "answer").starts == (1,)  # nothing predicts the first token
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if not add_generation_prompt %}Stop{% endif %}"
    )
    assert counted(Example("Why", "S"), tokenizer) == "\nS\nStop"


def test_a_template_that_words_an_open_conversation_differently(tokenizer: PreTrainedTokenizerFast) -> None:
    """The answer is then found in the text, at its end, however often it is said before."""
    tokenizer.chat_template = "{% if add_generation_prompt %}(open){% else %}(closed){% endif %}" + CHAT
    assert counted(Example("So. Why So.?", "So."), tokenizer) == "So.<eos>"


def test_a_template_that_changes_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """The question is then the beginning that both texts share."""
    tokenizer.chat_template = CHAT.replace("m['content']", "m['content'] | upper").replace(
        "<bos>assistant: {% endif %}", "<bos>assistant: ...{% endif %}"
    )
    assert counted(Example("Why?", "So."), tokenizer) == "SO.<eos>"


def test_rows_whose_answer_is_cut_away_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    """And counted; with one token of it left a row stays."""
    examples = [Example("abc", "defg"), Example("abcdefgh", "ij"), Example("ab", "c")]
    encoded = encode(examples, tokenizer, 5, "answer")
    assert [len(row) for row in encoded.rows] == [5, 5]
    assert encoded.starts == (4, 3)
    assert (encoded.truncated_rows, encoded.lost_tokens, encoded.left_out) == (1, 4, 1)
    with pytest.raises(InputError, match=r"nothing of the answer is within 4 tokens.*larger max_length"):
        encode(examples[:1], tokenizer, 4, "answer")
    assert encode(examples, tokenizer, 5).left_out == 0


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_batches_hold_every_row_once(size: int, side: str) -> None:
    """Sorted by length, padded to the longest, and told which positions are real and predicted."""
    rows = random_rows((4, 9, 2, 5, 5))
    found = list(batches(Encoded(rows, 0), size, side))
    assert [row for batch in found for row in batch.rows] == [2, 0, 3, 4, 1]
    for batch in found:
        assert len(batch.rows) <= size
        assert batch.ids.shape == batch.valid.shape == (len(batch.rows), max(len(rows[row]) for row in batch.rows))
        assert batch.predicted.sum(1).tolist() == [len(rows[row]) - 1 for row in batch.rows]
        inputs = batch.inputs()
        for place, row in enumerate(batch.rows):
            assert torch.equal(batch.ids[place][batch.valid[place]], rows[row])
            if side == "left":
                assert bool(batch.valid[place, -1])
                positions = inputs["position_ids"][place][batch.valid[place]]
                assert positions.tolist() == list(range(len(rows[row])))
                assert inputs["attention_mask"][place].bool().equal(batch.valid[place])
            else:
                assert bool(batch.valid[place, 0])


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("size", [1, 2, 9])
def test_positions_before_the_start_do_not_count(size: int, side: str) -> None:
    """Of every row exactly the tokens from its start on are predicted, padded on either side."""
    rows, starts = random_rows((4, 9, 2, 5)), (3, 4, 1, 1)
    for batch in batches(Encoded(rows, 0, starts), size, side):
        for place, row in enumerate(batch.rows):
            targets = batch.ids[place, 1:][batch.predicted[place]]
            assert torch.equal(targets, rows[row][starts[row] :])


def test_without_starts_every_token_counts() -> None:
    """As batches were before there was a choice."""
    ids, valid = torch.arange(6)[None], torch.tensor([[False, False, True, True, True, True]])
    batch = Batch((0,), ids, valid, "left")
    assert batch.predicted.tolist() == [[False, False, True, True, True]]
    assert Batch((0,), ids, valid, "left", (2,)).predicted.tolist() == [[False, False, False, True, True]]
