"""Streaming: the tokens that generate would give, one after another, and two models in turns."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from slim.evaluation import answers
from slim.evaluation.settings import AnswerSettings
from slim.evaluation.streaming import Answer, prompt_ids, side_by_side, stream
from slim.models.load import Loaded, load_model
from slim.pruning import checkpoint
from tests.pico import keeping, plan_of, save_pico

PROMPT = "Which head goes first?"
TEMPLATE = "{% for m in messages %}<bos>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def pair(
    request: pytest.FixtureRequest, pico: Callable[..., Loaded], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Loaded, Loaded]:
    """A model and itself without its first block and some heads."""
    place = tmp_path_factory.mktemp("generate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(place / "workspace"))
        original = save_pico(pico(request.param), place / "original")
        keep = keeping((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
        pruned = checkpoint.prune(plan_of(original.facts, keep), place / "pruned")
        both = original, load_model(str(pruned), device="cpu", dtype="float64")
        for loaded in both:
            loaded.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
            loaded.model.config.eos_token_id = loaded.tokenizer.eos_token = None
        return both


def greedy(loaded: Loaded, count: int) -> list[int]:
    """The tokens of transformers' own generate."""
    ids = prompt_ids(loaded, PROMPT)
    mask = torch.ones_like(ids)
    found = loaded.model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=count)  # type: ignore[operator]
    return found[0, ids.shape[1] :].tolist()


def text_of(loaded: Loaded, tokens: list[int]) -> str:
    """Tokens as text."""
    return str(loaded.tokenizer.decode(tokens, skip_special_tokens=True))


def test_a_stream_is_generate(pair: tuple[Loaded, Loaded]) -> None:
    """Each answer is the text of one token more, to the limit."""
    for loaded in pair:
        tokens = greedy(loaded, 20)
        answers = list(stream(loaded, PROMPT, 20))
        assert len(tokens) == 20
        assert [answer.text for answer in answers] == [text_of(loaded, tokens[:n]) for n in range(1, 21)]
        assert [answer.tokens for answer in answers] == list(range(1, 21))
        assert not any(answer.finished for answer in answers)
        assert answers[0].tokens_per_second is None
        assert answers[-1].tokens_per_second == 19 / answers[-1].seconds
        assert all(answer.first == answers[0].first > 0 for answer in answers)
    assert greedy(pair[0], 20) != greedy(pair[1], 20)


def test_a_penalty_is_that_of_answers(pair: tuple[Loaded, Loaded]) -> None:
    """On the tokens that were streamed, for both models of a pair."""
    asked = AnswerSettings(max_new_tokens=20, repetition_penalty=1.5)
    for index, loaded in enumerate(pair):
        (expected,), _ = answers.answer(loaded, [prompt_ids(loaded, PROMPT)[0]], asked, ())
        found = [one for turn, one in side_by_side(pair, PROMPT, 20, 1.5) if turn == index]
        assert found[-1].text.strip() == expected.text != text_of(loaded, greedy(loaded, 20)).strip()


@pytest.mark.parametrize("several", [False, True])
def test_a_stream_stops_at_the_end_token(
    pair: tuple[Loaded, Loaded], monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    """Where generate stops, the end token itself not in the text, and the answer says that it ended."""
    for loaded in pair:
        tokens = greedy(loaded, 20)
        end = tokens[7]
        stop = tokens.index(end)
        assert 263 not in tokens[:stop]
        monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [263, end] if several else end)
        assert greedy(loaded, 20) == tokens[: stop + 1]
        last = list(stream(loaded, PROMPT, 20))[-1]
        assert last.finished
        assert last.tokens == stop
        assert last.text == text_of(loaded, tokens[:stop])


def test_two_models_take_turns(pair: tuple[Loaded, Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """A token each while both go on, then the longer one alone; each as if it were alone."""
    short, long = pair
    tokens = greedy(short, 20)
    monkeypatch.setattr(short.model.generation_config, "eos_token_id", tokens[5])
    stop = tokens.index(tokens[5])
    found: list[tuple[int, Answer]] = list(side_by_side(pair, PROMPT, 12))
    turns = [index for index, _ in found]
    assert turns == [0, 1] * (stop + 1) + [1] * (12 - stop - 1)
    for index, loaded in enumerate((short, long)):
        texts = [answer.text for turn, answer in found if turn == index]
        assert texts == [answer.text for answer in stream(loaded, PROMPT, 12)]


def test_the_prompt_goes_through_the_chat_template(
    pair: tuple[Loaded, Loaded], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the tokenizer has one; as it stands otherwise."""
    tokenizer = pair[0].tokenizer
    assert prompt_ids(pair[0], PROMPT)[0].tolist() == tokenizer(PROMPT)["input_ids"]
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    expected = [1, *tokenizer(f"{PROMPT}>")["input_ids"]]  # type: ignore[misc]
    assert prompt_ids(pair[0], PROMPT)[0].tolist() == expected


def test_no_tokens_asked_for_gives_no_answer(pair: tuple[Loaded, Loaded]) -> None:
    """And leaves the model as it was."""
    assert list(stream(pair[0], PROMPT, 0)) == []


def test_a_stream_can_be_left_early(pair: tuple[Loaded, Loaded], tmp_path: Path) -> None:
    """A later one starts afresh."""
    first = next(stream(pair[1], PROMPT, 20))
    assert next(stream(pair[1], PROMPT, 20)).text == first.text


def test_a_plan_tried_on_the_original_answers_as_the_pruned_model(pair: tuple[Loaded, Loaded]) -> None:
    """Side by side with itself, heads and blocks passed by; afterwards the original is whole again."""
    original, pruned = pair
    keep = keeping((), (0, 2, 3, 5), (3, 4, 5), (0, 1, 2, 3, 4, 5))
    last = {}
    for index, answer in side_by_side([original, (original, keep)], PROMPT, 12):
        last[index] = answer.text
    assert last[0] == text_of(original, greedy(original, 12))
    assert last[1] == text_of(pruned, greedy(pruned, 12))
    assert last[0] != last[1]
