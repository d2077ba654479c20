"""The workspace's checkpoints as a form offers them, and the model that they were pruned from."""

from collections.abc import Sequence

from pages.views.frame import plain_errors
from slim.core.errors import InputError
from slim.core.run_index import runs
from slim.pruning import held_out


def checkpoint_names() -> dict[str, str]:
    """A short name for each checkpoint of the workspace, by its path."""
    with plain_errors():
        known = held_out.labels([str(path) for path in runs("checkpoint")])
    return {source: name for name, source in known.items()}


def cut_from(chosen: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the model that all of `chosen` were pruned from, or why it is unknown."""
    if not chosen:
        return None, None
    try:
        return held_out.original_of(chosen), None
    except InputError as error:
        return None, str(error)
