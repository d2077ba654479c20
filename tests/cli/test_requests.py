"""One record says what may be asked of a stage: command line, jobs, reports, forms and functions follow it."""

import inspect
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import typer
from streamlit.testing.v1 import AppTest
from typer.core import TyperGroup

import slim
from slim import jobs
from slim.cli import cli
from slim.cli.options import read
from slim.core.errors import InputError
from slim.core.request import Argument, Option, Request, Text
from slim.jobs.job import Job
from slim.jobs.kinds import EARLIER, KINDS
from slim.planning.request import PlanRequest

REQUESTS = (*(row.request for row in KINDS.values()), PlanRequest)
BEHIND_FORMS = {"after-repair": "plan"}
"""Kinds of jobs that have no verb of their own, each with the one that runs it."""
GIVEN: dict[str, Any] = {
    "checkpoints": ("one", "two"),
    "output": Path("new"),
    "repository": "owner/name",
    "unit": "group",
}
"""Values of options that not every text is one of; for any other without a default its name stands."""
TOGETHER: dict[tuple[str, str], dict[str, Any]] = {("plan", "after_repair"): {"budget": {"params": 0.9}}}
"""Options that stand only beside others."""
OLD: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    (
        "calibrate",
        {"model": "m", "dataset": "d.csv", "split": "s", "settings": {"samples": 3, "kl": "none"}},
        {"model": "m", "dataset": "d.csv", "split": "s", "samples": 3, "kl": "none"},
    ),
    ("check", {"calibration": "c", "rows": 4}, {"calibration": "c", "samples": 4}),
    ("absorb", {"calibration": "c"}, {"calibration": "c"}),
    ("prune", {"plan": "p", "repaired": False}, {"plan": "p", "repair": False}),
    ("repair", {"source": "f", "settings": {"samples": 9}}, {"folder": "f", "samples": 9}),
    (
        "finetune",
        {"source": "f", "dataset": "d", "method": "lora", "settings": {"steps": 5, "weights": "full"}},
        {"folder": "f", "dataset": "d", "method": "lora", "steps": 5, "weights": "full"},
    ),
    (
        "evaluate",
        {"checkpoints": ["f"], "standard": ["arc_easy"], "settings": {"samples": 8, "pace": {"repeats": 2}}},
        {"checkpoints": ("f",), "tasks": ("arc_easy",), "samples": 8, "repeats": 2},
    ),
    (
        "judge",
        {"pruned": "f", "samples": 5, "settings": {"max_new_tokens": 7}, "prices": [1.0, 2.0]},
        {"pruned": "f", "samples": 5, "max_new_tokens": 7, "price_in": 1.0, "price_out": 2.0},
    ),
    (
        "export",
        {"source": "f", "number_format": "f16", "output": "new.gguf"},
        {"folder": "f", "type": "f16", "output": Path("new.gguf")},
    ),
)
"""Jobs as Slim 0.1 stored them: kind, arguments, and the values of today's options that they stand for."""


def required(request: type[Request]) -> dict[str, Any]:
    return {option.name: GIVEN.get(option.name, option.name) for option in request.options() if option.required}


def other(option: Option) -> Any:
    """A value of the option that is not its default."""
    if text := option.marker(Text):
        return text.read(option.name, text.form)
    kind, default = option.kind, option.default
    if kind is bool:
        return not default
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != default)
    if kind in (int, float):
        low, high = option.bounds
        low = low or 0
        value = kind(low + 7 if high is None else (3 * low + high) / 4)
        return value if value != default else value + 1
    if kind is Path:
        return Path("new")
    return f"http://127.0.0.1:1/{option.name}" if option.name == "endpoint" else f"some-{option.name}"


def each() -> Iterator[Any]:
    """Every option that has more than one value."""
    for request in REQUESTS:
        for option in request.options():
            if get_args(option.info.annotation) != (option.default,):
                yield pytest.param(request, option, id=f"{request.verb}-{option.name}")


def verbs() -> dict[str, Any]:
    group = typer.main.get_command(cli)
    assert isinstance(group, TyperGroup)
    return {**group.commands}


@pytest.fixture(autouse=True)
def criteria(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that the example of `--rubric` names."""
    monkeypatch.chdir(tmp_path)
    Path("rubric.txt").write_text("Prefer the shorter answer.", encoding="utf-8")


@pytest.mark.parametrize(("request_class", "option"), list(each()))
def test_every_option_is_the_same_wherever_it_is_given(request_class: type[Request], option: Option) -> None:
    """On the command line, in a job, in the command of a report and in a function: one name, one value, one default."""
    given = required(request_class) | TOGETHER.get((request_class.verb, option.name), {})
    asked = request_class.asked(**given | {option.name: GIVEN.get(option.name, other(option))})
    value = asked.flat()[option.name]
    assert value != option.default

    stored = json.loads(json.dumps(asked.arguments()))
    back = request_class.of_job(stored)
    assert str(back.flat()[option.name]).endswith(str(value))  # a path is stored whole
    assert option.name in stored

    if request_class.verb not in BEHIND_FORMS:
        words = shlex.split(asked.command())
        assert words[:2] == ["slim", request_class.verb]
        context = verbs()[request_class.verb].make_context(request_class.verb, words[2:])
        assert read(request_class, context.params) == asked

    if (function := getattr(slim, request_class.verb, None)) is not None:
        stage = inspect.unwrap(function)
        assert get_type_hints(stage)["request"] is request_class


@pytest.mark.parametrize("request_class", REQUESTS, ids=lambda one: one.verb)
def test_the_command_line_has_the_options_of_the_request(request_class: type[Request]) -> None:
    """With its defaults and its help, and none beside that a job or a function could not be given."""
    if request_class.verb in BEHIND_FORMS:
        assert request_class.verb not in verbs()
        return
    parameters = {one.name: one for one in verbs()[request_class.verb].params}
    options = {one.name: one for one in request_class.options()}
    assert parameters.keys() - options.keys() <= {"as_json", "check", "yes", "help"}
    assert options.keys() <= parameters.keys()
    for name, option in options.items():
        shown = parameters[name]
        assert shown.required == option.required
        assert shown.help == option.help, name
        assert bool(option.help), f"{request_class.verb}: {name} has no help"
        if not option.marker(Argument):
            assert {*shown.opts, *shown.secondary_opts} == {
                spelling for spellings in option.spellings for spelling in spellings.split("/")
            }
    bare = [str(one) for name in required(request_class) if options[name].marker(Argument) for one in as_list(name)]
    named = [
        f"{options[name].spellings[0]}={value}"
        for name, value in required(request_class).items()
        if not options[name].marker(Argument)
    ]
    context = verbs()[request_class.verb].make_context(request_class.verb, [*bare, *named])
    assert read(request_class, context.params) == request_class.asked(**required(request_class))


def as_list(name: str) -> tuple[Any, ...]:
    value = GIVEN.get(name, name)
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize(("kind", "arguments", "meant"), OLD, ids=lambda one: one if isinstance(one, str) else "")
def test_a_job_of_slim_0_1_is_understood(kind: str, arguments: dict[str, Any], meant: dict[str, Any]) -> None:
    """It can be done again."""
    job = Job(id="1", kind=kind, arguments=arguments, device="cpu", created=1.0, place=1.0)
    found = jobs.request_of(job)
    assert found.verb == EARLIER.get(kind, kind)
    assert found == type(found).asked(**meant)


def test_a_value_that_cannot_be_is_named(tmp_path: Path) -> None:
    """By the option's name, whoever gives it, and nothing starts."""
    for given in ({"samples": 0}, {"kl": "no"}, {"max_length": 1}):
        name, value = next(iter(given.items()))
        with pytest.raises(InputError, match=f"{name}={value!r}"):
            slim.calibrate(**given)  # type: ignore[arg-type]  wrong values are what is tested
    with pytest.raises(InputError, match="depth"):
        slim.calibrate(depth=3)  # type: ignore[call-arg]  and so is a wrong name


WIDGETS = """
from slim.core.request import Text
from slim.jobs.kinds import KINDS
from slim.planning.request import PlanRequest
from pages.views.fields import ask
for request in [*(row.request for row in KINDS.values()), PlanRequest]:
    for option in request.options():
        if not option.required and option.marker(Text) is None:
            ask(request, option.name, f"{request.verb}-{option.name}")
"""


def test_a_field_of_a_form_has_the_option_s_default_help_and_bounds() -> None:
    """Whatever stage it belongs to."""
    app = AppTest.from_string(WIDGETS).run()
    assert not app.exception
    for request in REQUESTS:
        for option in request.options():
            if option.required or option.marker(Text) is not None:
                continue
            kind, key = option.kind, f"{request.verb}-{option.name}"
            name = {bool: "checkbox", int: "number_input", float: "number_input"}.get(
                kind, "selectbox" if get_origin(kind) is Literal else "text_input"
            )
            field = getattr(app, name)(key=key)
            assert (field.value or None) == (option.default or None), key
            assert (field.label, field.help or "") == (option.title, option.help[:1].upper() + option.help[1:]), key
            if name == "number_input":
                low, _ = option.bounds
                assert field.min is None or field.min == low
                assert low is None or field.min == low
