"""Templates and layouts: what is guessed from the columns, what can be changed, and what each preset makes of a row."""

from datetime import date
from typing import Any

import pytest

from slim.core.errors import InputError
from slim.data.columns import MOST_LABELS, as_text, fit_mapping
from slim.data.omissions import RowLeftOut
from slim.data.readers import read_row
from slim.data.templates import TEMPLATES, Conversation, Example

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": " Me. "},
]


def example_of(row: dict[str, Any], **given: Any) -> Example:
    """The only row of a dataset as an example."""
    layout = fit_mapping(list(row), **given)
    return read_row(layout, row, 1, layout.labels([row]))


@pytest.mark.parametrize(
    ("row", "kind", "prompt", "answer"),
    [
        ({"article": "A.", "highlights": "B."}, "summarisation", "few sentences.\n\nA.", "B."),
        ({"passage": "A.", "summary": "B."}, "summarisation", "few sentences.\n\nA.", "B."),
        ({"message": "Late!", "label": "delivery"}, "classification", "one of these: delivery.\n\nLate!", "delivery"),
        ({"text": "Late!", "label": 1}, "classification", "one of these: 1.\n\nLate!", "1"),
        ({"query": "Which?", "choices": ["x", "y"], "gold": 1}, "choices", "Which?\nA. x\nB. y", "y"),
        ({"question": "Which?", "choices": ["x", "y"], "answer": 0}, "choices", "Which?\nA. x\nB. y", "x"),
        (
            {"question": "Which?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            "choices",
            "Which?\nA. x\nB. y",
            "y",
        ),
        ({"question": "Which?", "options": ["x", "y"], "answer": "B"}, "choices", "Which?\nA. x\nB. y", "y"),
        ({"prompt": "Do.", "response": "Done."}, "instructions", "Do.", "Done."),
        ({"instruction": "Do.", "output": "Done.", "id": 3}, "instructions", "Do.", "Done."),
        ({"question": "Why?", "answer": " So. "}, "questions", "Why?", "So."),
        (
            {"context": "It is.", "question": "Is it?", "answers": {"text": ["Yes.", "yes"], "answer_start": [0, 1]}},
            "reading",
            "It is.\n\nIs it?",
            "Yes.",
        ),
        ({"problem": "1 + 1?", "solution": "2"}, "maths", "Solve this problem step by step.\n\n1 + 1?", "2"),
        ({"text": "All of it."}, "text", "", "All of it."),
    ],
)
def test_columns_choose_the_template(row: dict[str, Any], kind: str, prompt: str, answer: str) -> None:
    """The names of the columns say what the task is, in whatever order they come."""
    for names in (list(row), list(reversed(row))):
        assert fit_mapping(names).template.name == kind
    example = example_of(row)
    assert example.prompt.endswith(prompt)
    assert bool(example.prompt) == bool(prompt)
    assert example.answer == answer


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_chat_ends_in_its_last_answer(column: str) -> None:
    """All that was said before it stays; what comes after it goes."""
    said = (("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."), ("user", "Who?"))
    expected = Example("Who?", "Me.", said, conversation=Conversation.of(CHAT))  # which keeps the answer's spaces
    assert example_of({column: CHAT}) == expected
    longer = example_of({column: [*CHAT, {"role": "user", "content": "Bye."}]})
    assert longer == expected
    assert longer.unread == ("turns after the last answer",)
    stripped = [*CHAT[:-1], {"role": "assistant", "content": "Me."}]
    assert example_of({column: stripped}) == Example("Who?", "Me.", said)


def test_other_spellings_of_a_chat() -> None:
    """from/value, human/gpt, content in parts; a turn that says nothing stays where it is."""
    turns = [
        {"from": "human", "value": "Hello."},
        {"role": "assistant", "content": None},
        {"role": "User", "content": [{"type": "text", "text": "Well?"}]},
        {"from": "gpt", "value": "Hi."},
    ]
    said = (("user", "Hello."), ("assistant", ""), ("user", "Well?"))
    assert example_of({"messages": turns}) == Example("Well?", "Hi.", said)


def test_a_chat_without_an_answer_is_left_out() -> None:
    """Nothing is expected of the model there."""
    for turns, why in (
        (CHAT[:2], "no turn of the assistant"),
        ([], "column 'messages' is empty"),
        ([*CHAT[:2], {"role": "assistant", "content": " "}], "says nothing"),
    ):
        with pytest.raises(RowLeftOut, match=why):
            example_of({"messages": turns})


@pytest.mark.parametrize("turns", ["hello", ["hello"], [{"content": "hello"}], [{"role": 1, "content": "hello"}]])
def test_a_column_that_is_no_chat_is_named(turns: Any) -> None:
    """In the reason why the row is left out."""
    with pytest.raises(RowLeftOut, match="'messages' is not a list of turns"):
        example_of({"messages": turns})


@pytest.mark.parametrize("gold", [5, -1, "b", 1.5, "", None, "C"])
def test_a_key_that_names_no_choice(gold: Any) -> None:
    """An empty key is a row without an answer; any other says nothing of the choices."""
    row = {"query": "Which?", "choices": ["x", "y"], "gold": gold}
    with pytest.raises(RowLeftOut, match="'gold' is " + ("empty" if gold in ("", None) else "not the place of one")):
        example_of(row)


@pytest.mark.parametrize("choices", ["xyz", {"text": None}, 3])
def test_choices_that_are_no_list(choices: Any) -> None:
    """The letters of a text are not taken for choices."""
    with pytest.raises(RowLeftOut, match="'choices' is not a list of choices"):
        example_of({"query": "Which?", "choices": choices, "gold": 1})


def test_every_label_is_named_once_in_order() -> None:
    """Over all rows, in words."""
    layout = fit_mapping(["text", "label"])
    rows = [{"text": "x", "label": label} for label in ("b", "c", "a", "b", None, " ")]
    assert layout.labels(rows) == "a, b or c"
    assert layout.labels(rows[:1]) == "b"
    assert layout.labels(rows[:2]) == "b or c"
    with pytest.raises(InputError, match=r"\{labels\} stands for 41 different values of the column 'label'"):
        layout.labels([{"text": "x", "label": str(label)} for label in range(MOST_LABELS + 1)])
    assert fit_mapping(["text", "label"], prompt="Sort {text}").labels(rows * 99) == ""


def test_template_columns_and_prompt_can_be_chosen() -> None:
    """Each alone, with the rest guessed."""
    row = {"question": "1 + 1?", "answer": "2", "hint": "add"}
    assert example_of(row, template="maths") == Example("Solve this problem step by step.\n\n1 + 1?", "2")
    assert example_of(row, columns={"answer": "hint"}) == Example("1 + 1?", "add")
    assert example_of(row, prompt="{question} ({hint})") == Example("1 + 1? (add)", "2")
    assert example_of(row, template="text", columns={"text": "hint"}) == Example("", "add")
    assert example_of(row, template="text", columns={"text": "hint"}, prompt="Go:") == Example("Go:", "add")
    assert fit_mapping(list(row), columns={"problem": "hint"}).template.name == "maths"


def test_a_column_is_not_guessed_twice() -> None:
    """One that was given a role is not the guess for another."""
    layout = fit_mapping(["text", "review"], "classification", {"label": "text"})
    assert dict(layout.columns) == {"label": "text", "text": "review"}
    with pytest.raises(InputError, match="'classification' needs a column for 'label'"):
        fit_mapping(["text", "label"], "classification", {"text": "label"})
    with pytest.raises(InputError, match="'choices' needs a column for 'key'"):
        fit_mapping(["question", "choices", "key"], "choices")


def test_own_columns_need_only_an_answer_and_a_prompt() -> None:
    """Nothing of this is a name that any template knows."""
    row = {"frage": "1 + 1?", "antwort": "2"}
    assert example_of(row, columns={"answer": "antwort"}, prompt="{frage}") == Example("1 + 1?", "2")
    assert example_of(row, template="questions", columns={"question": "frage", "answer": "antwort"}) == Example(
        "1 + 1?", "2"
    )


def test_a_role_comes_before_a_column_of_its_name() -> None:
    """Mapped elsewhere, `{question}` is what it was mapped to."""
    row = {"question": "short", "long": "long one", "answer": "x"}
    assert example_of(row, columns={"question": "long"}) == Example("long one", "x")


def test_braces_in_a_prompt() -> None:
    """Doubled ones stand for themselves, and so do lone ones; nothing but names is looked up."""
    row = {"question": "{answer}", "answer": "x"}
    assert example_of(row, prompt='{{"a": 1}} { } {question} {') == Example('{"a": 1} { } {answer} {', "x")
    for name in ("question.__class__", "0", "question!r"):
        with pytest.raises(InputError, match="names no column"):
            example_of(row, prompt=f"{{{name}}}")


def test_rows_without_what_is_needed_are_left_out() -> None:
    """A role that is used must be there and not blank; another column of the prompt may be empty."""
    layout = fit_mapping(["instruction", "input", "output"], prompt="{instruction}\n{input}")
    assert read_row(layout, {"instruction": "a", "input": "", "output": "b"}) == Example("a\n", "b")
    assert read_row(layout, {"instruction": "a", "output": "b"}) == Example("a\n", "b")
    for row in ({"instruction": "a"}, {"instruction": "a", "output": " \n"}, {"instruction": None, "output": "b"}):
        with pytest.raises(RowLeftOut, match=r"the column '(instruction|output)' is empty"):
            read_row(layout, row)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"template": "poems"}, "template 'poems' does not exist: choose .*summarisation"),
        (
            {"columns": {"answer": "reply"}},
            "columns: answer='reply' is not a column of dataset 'of rows': choose answer, ques",
        ),
        ({"columns": {"reply": "answer"}}, "columns: no template has the roles reply together"),
        ({"template": "maths", "columns": {"text": "answer"}}, "'maths' has no role 'text': problem, solution"),
        ({"template": "summarisation"}, "'summarisation' needs a column for 'text': choose one of answer, question"),
        ({"template": "choices", "columns": {"key": "answer"}}, "'choices' needs a column for 'choices'"),
        ({"template": "chat"}, "'chat' needs a column for 'messages'"),
        ({"template": "chat", "columns": {"messages": "answer"}, "prompt": "Hi"}, "prompt: the turns of a chat"),
        ({"prompt": "{nope}"}, r"prompt: \{nope\} names no column: use \{answer\}, \{question\}, or \{\{nope\}\}"),
        ({"prompt": "{labels}"}, r"prompt: \{labels\} names no column"),
    ],
)
def test_what_cannot_be_fitted(given: dict[str, Any], words: str) -> None:
    """Field, value, and what could be given instead."""
    with pytest.raises(InputError, match=words):
        fit_mapping(["question", "answer"], **given)


def test_columns_that_no_template_fits() -> None:
    """All of them are named, and so is what would fit."""
    with pytest.raises(InputError, match=r"\['bar', 'foo'\].*question \+ answer"):
        fit_mapping(["foo", "bar"])


def test_values_as_text() -> None:
    """All of a list, of a record its text, and JSON of what else there is; of accepted answers the first."""
    values = (None, 4, 1.5, [], ["a", "b"], {"text": ["c"]}, {"value": "d"}, True, {"n": [None]}, date(2026, 1, 2))
    texts = ["", "4", "1.5", "", "a\nb", "c", "d", "true", '{"n": [null]}', "2026-01-02"]
    assert [as_text(value) for value in values] == texts
    assert as_text(["a", "b"], first=True) == as_text({"text": ["a", "b"]}, first=True) == "a"


def test_presets_are_told_apart() -> None:
    """Every preset is guessed from the first columns it names, or it could never be."""
    for template in TEMPLATES.values():
        for roles in (template.roles.keys(), template.roles.keys() - template.optional):
            names = [template.roles[role][0] for role in template.roles if role in roles]
            assert fit_mapping(names).template is template
