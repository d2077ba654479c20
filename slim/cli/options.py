"""Verbs made of requests: every option of a request is an option of its command, with its default and its help."""

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeVar, get_origin

import typer

from slim.cli.shared import cli
from slim.core.request import Argument, Option, Request, Text

R = TypeVar("R", bound=Request)


def command(request: type[Request]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the verb of a request, which it gets first; its other parameters are further options."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            asked = {option.name: given.pop(option.name) for option in request.options()}
            function(read(request, asked), **given)

        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        further = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = [*map(_parameter, request.options()), *further]
        vars(run)["__signature__"] = inspect.Signature(parameters)
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__doc__ = request.__doc__
        return cli.command(name=request.verb)(run)

    return register


def read(request: type[R], given: Mapping[str, Any]) -> R:
    """Return the request of the options on the command line. Raises InputError for invalid ones."""
    return request.asked(**{option.name: _value(option, given[option.name]) for option in request.options()})


def _parameter(option: Option) -> inspect.Parameter:
    info: Any
    if argument := option.marker(Argument):
        info = typer.Argument(metavar=argument.metavar, help=option.help)
    else:
        info = typer.Option(*option.spellings, help=option.help)
    default = inspect.Parameter.empty if option.required else _shown(option)
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(option.name, kind, default=default, annotation=Annotated[_type(option), info])


def _type(option: Option) -> Any:
    """The type of an option on the command line."""
    if option.marker(Text):
        return str | None
    kind = list[str] if get_origin(option.kind) is tuple else option.kind
    return kind if option.required or option.default is not None else kind | None


def _shown(option: Option) -> Any:
    """The default, as text where it is structured."""
    text, default = option.marker(Text), option.default
    return (text.write(default) if default else None) if text else default


def _value(option: Option, given: Any) -> Any:
    text = option.marker(Text)
    return text.read(option.name, given) if text and given is not None else given
