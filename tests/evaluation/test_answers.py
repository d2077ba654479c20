"""Answers in batches are those that each row gets alone, and what was answered is not computed again."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from slim.core.cache import open_cache
from slim.core.errors import SlimError
from slim.core.reporter import Reporter
from slim.data.encode import text_of
from slim.data.templates import Example
from slim.evaluation.answers import answer, context_of, prompts
from slim.evaluation.model_answer import ModelAnswer
from slim.evaluation.settings import AnswerSettings
from slim.models.load import Loaded, load_model
from slim.pruning import checkpoint
from tests.pico import FAMILIES, keeping, plan_of, random_rows, save_pico

ROWS = random_rows((5, 9, 2, 17, 9, 1, 30))
TEMPLATE = "{% for m in messages %}<bos>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"


def settings(**values: Any) -> AnswerSettings:
    return AnswerSettings(**{"max_new_tokens": 12, "batch_size": 4} | values)


def greedy(loaded: Loaded, row: Tensor, count: int) -> list[int]:
    """The likeliest token after another, each from a forward over everything so far."""
    ids = row[None]
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat((ids, loaded.model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)), 1)
    return ids[0, len(row) :].tolist()


def text(loaded: Loaded, tokens: list[int]) -> str:
    return str(loaded.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def counted(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that the model generates from here on."""
    sizes: list[int] = []
    generate: Callable[..., Tensor] = loaded.model.generate  # type: ignore[assignment]

    def watched(**inputs: Any) -> Tensor:
        sizes.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(loaded.model, "generate", watched)
    return sizes


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_each_row_alone(family: str, pico: Callable[..., Loaded]) -> None:
    """Padding and company change nothing, whatever the family: the tokens are those of a forward without a cache."""
    loaded = pico(family)
    found, notes = answer(loaded, ROWS, settings(), stops=())
    assert [one.text for one in found] == [text(loaded, greedy(loaded, row, 12)) for row in ROWS]
    assert all(one.tokens == 12 and one.truncated for one in found)
    assert notes == []


def test_a_pruned_model_answers_too(pico: Callable[..., Loaded], tmp_path: Path) -> None:
    """With an attention block gone, a layer gone, and heads gone elsewhere."""
    original = save_pico(pico("llama"), tmp_path / "original")
    folder = checkpoint.prune(
        plan_of(original.facts, keeping((), None, (3, 4, 5), (0, 1, 2, 3, 4, 5)), "layer"), tmp_path / "pruned"
    )
    loaded = load_model(str(folder), device="cpu", dtype="float64")
    found, _ = answer(loaded, ROWS, settings(), stops=())
    assert [one.text for one in found] == [text(loaded, greedy(loaded, row, 12)) for row in ROWS]


def test_an_answer_ends_before_a_stop(pico: Callable[..., Loaded]) -> None:
    """Each row at its own, also where others of its batch go on; the answer does not include the stop."""
    loaded = pico("llama")
    expected = [greedy(loaded, row, 12) for row in ROWS]
    stops = {expected[0][3], expected[3][1]}
    found, _ = answer(loaded, ROWS, settings(), stops)
    for tokens, one in zip(expected, found, strict=True):
        until = next((place for place, token in enumerate(tokens) if token in stops), None)
        assert one.finished == (until is not None)
        assert one.tokens == (12 if until is None else until)
        assert one.text == text(loaded, tokens[:until])
    assert {one.finished for one in found} == {True, False}


def penalized(loaded: Loaded, row: Tensor, count: int, penalty: float) -> list[int]:
    """The likeliest tokens one by one, where those of the answer so far are less likely (Keskar 2019)."""
    said: list[int] = []
    for _ in range(count):
        with torch.inference_mode():
            ids = torch.cat((row, torch.tensor(said, dtype=torch.long)))
            logits = loaded.model(input_ids=ids[None]).logits[0, -1]
        logits = logits.clone()  # which may be written to
        for token in set(said):
            logits[token] = logits[token] / penalty if logits[token] > 0 else logits[token] * penalty
        said.append(int(logits.argmax()))
    return said


def test_a_penalty_is_on_what_the_answer_holds(pico: Callable[..., Loaded]) -> None:
    """Not on the prompt's tokens, whatever the padding; a penalty of 1 changes nothing."""
    loaded = pico("llama")
    found, _ = answer(loaded, ROWS, settings(repetition_penalty=1.5), stops=())
    assert [one.text for one in found] == [text(loaded, penalized(loaded, row, 12, 1.5)) for row in ROWS]
    plain, _ = answer(loaded, ROWS, settings(), stops=())
    assert found != plain == answer(loaded, ROWS, settings(repetition_penalty=1), stops=())[0]


def test_summaries_have_a_penalty_of_their_own() -> None:
    """Where none is named; other answers have none."""
    assert settings().for_kind("summarisation").repetition_penalty == 1.2
    assert settings().for_kind("maths") == settings()
    assert settings(repetition_penalty=1).for_kind("summarisation").repetition_penalty == 1


def test_settings_of_the_model_change_nothing(pico: Callable[..., Loaded]) -> None:
    """A model that comes with sampling or a penalty is asked as its original is."""
    loaded = pico("llama")
    plain, _ = answer(loaded, ROWS, settings(), ())
    own = loaded.model.generation_config
    assert own is not None
    own.do_sample, own.temperature, own.top_k, own.repetition_penalty, own.max_length = True, 5.0, 3, 9.0, 4
    assert answer(loaded, ROWS, settings(), ())[0] == plain


def test_sampling_depends_on_the_row_and_the_seed_alone(pico: Callable[..., Loaded]) -> None:
    """Not on the batch, not on the order; another seed gives other answers."""
    loaded = pico("llama")
    found, _ = answer(loaded, ROWS, settings(temperature=1.0), ())
    alone, _ = answer(loaded, ROWS[::-1], settings(temperature=1.0, batch_size=1), ())
    assert alone[::-1] == found
    assert answer(loaded, ROWS, settings(temperature=1.0, seed=1), ())[0] != found
    assert answer(loaded, ROWS, settings(), ())[0] != found


def test_sampling_draws_from_the_model(pico: Callable[..., Loaded]) -> None:
    """Over many seeds each of the likeliest tokens comes as often as its probability says, within four errors."""
    loaded = pico("llama")
    row = ROWS[1]
    with torch.inference_mode():
        likely = (loaded.model(input_ids=row[None]).logits[0, -1] / 0.5).softmax(-1)
    trials = 250
    drawn = Counter(
        answer(loaded, [row], settings(max_new_tokens=1, temperature=0.5, seed=seed), ())[0][0].text
        for seed in range(trials)
    )
    expected: Counter[str] = Counter()
    for token, share in enumerate(likely.tolist()):
        expected[text(loaded, [token])] += share  # type: ignore[assignment]
    for name, share in expected.most_common(5):
        assert abs(drawn[name] / trials - share) < 4 * (share * (1 - share) / trials) ** 0.5
    assert len(drawn) > 3


def test_a_stopped_run_goes_on_where_it_was(pico: Callable[..., Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were answered are not generated again, by whatever batches; other settings are another question."""
    loaded = pico("llama")
    sizes = counted(loaded, monkeypatch)

    class Stop(Reporter):
        def progress(self, done: float, total: float, message: str) -> None:
            if done > 10:
                raise KeyboardInterrupt

    with open_cache() as cache:
        with pytest.raises(KeyboardInterrupt):
            answer(loaded, ROWS, settings(), (), cache, Stop())
        assert sizes == [4]
        found, _ = answer(loaded, ROWS, settings(batch_size=2), (), cache)
        assert 3 <= sum(sizes[1:]) <= 4
        before = len(sizes)
        assert answer(loaded, ROWS[::-1], settings(), (), cache)[0] == found[::-1]
        assert len(sizes) == before
        for other in (settings(max_new_tokens=11), settings(temperature=0.3), settings(temperature=0.3, seed=1)):
            answer(loaded, ROWS, other, (), cache)
        answer(loaded, ROWS, settings(), (2,), cache)
        assert sum(sizes[before:]) == 4 * len(ROWS)
    assert found == answer(loaded, ROWS, settings(), ())[0]


def test_trouble_is_met_only_where_something_is_missing(pico: Callable[..., Loaded]) -> None:
    """Cached answers come all the same."""
    loaded, trouble = pico("llama"), SlimError("no")
    with open_cache() as cache:
        found, _ = answer(loaded, ROWS[:3], settings(), (), cache)
        assert answer(loaded, ROWS[:3], settings(), (), cache, trouble=trouble)[0] == found
        with pytest.raises(SlimError, match=r"^no$"):
            answer(loaded, ROWS[:4], settings(), (), cache, trouble=trouble)


def test_prompts_that_leave_no_room_are_not_asked(pico: Callable[..., Loaded]) -> None:
    """Prompt and answer together must fit the context; the others are answered as ever."""
    loaded = pico("llama", max_position_embeddings=29)
    assert context_of(loaded) == 29
    found, _ = answer(loaded, [*ROWS, ROWS[0][:0]], settings(), ())
    assert [one.failure for one in found[:6]] == [None] * 6
    assert found[6].failure == "the prompt is longer than the 17 tokens that the context leaves for it"
    assert found[7].failure == "the prompt is empty"
    assert found[6].text == found[7].text == ""
    assert not found[6].truncated
    assert found[:6] == answer(loaded, ROWS[:6], settings(), ())[0]
    nothing, _ = answer(loaded, ROWS, settings(max_new_tokens=100), ())
    assert all(
        one.failure == "the prompt is longer than the 0 tokens that the context leaves for it" for one in nothing
    )


def test_a_model_may_say_nothing(pico: Callable[..., Loaded]) -> None:
    """One that ends at once gives an empty answer that is finished, which does not count as a failure."""
    loaded = pico("llama")
    first = greedy(loaded, ROWS[1], 1)[0]
    assert answer(loaded, ROWS[1:2], settings(), (first,))[0] == [ModelAnswer(text="", tokens=0, finished=True)]


def test_prompts_are_the_start_of_what_was_calibrated_on(pico: Callable[..., Loaded]) -> None:
    """The prompt's tokens are those that the row has before its answer, with a chat template and without."""
    loaded = pico("llama")
    example = Example("Which head goes first?", "The third.", (("user", "Hello"), ("user", "Which head?")))
    for template in (None, TEMPLATE):
        loaded.tokenizer.chat_template = template
        (ids,) = prompts([example], loaded.tokenizer)
        said = str(loaded.tokenizer.decode(ids))
        assert said == ("Hello\nWhich head?\n" if template is None else "<bos>Hello<bos>Which head?>")
        if template is None:
            assert text_of(example, loaded.tokenizer).startswith(said)


def test_stops_are_all_that_the_model_and_its_tokenizer_name(pico: Callable[..., Loaded]) -> None:
    """One, several, or the tokenizer's alone."""
    loaded = pico("llama")
    own = loaded.model.generation_config
    assert own is not None
    for named, stops in ((None, (2,)), (7, (2, 7)), ([9, 7], (2, 7, 9))):
        own.eos_token_id = named
        assert loaded.stops == stops
