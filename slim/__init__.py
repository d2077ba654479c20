"""Slim: shrink a language model for your task, and know the cost before you cut.

`slim.load`, `slim.calibrate`, `slim.plan`, `slim.prune`, `slim.repair`, `slim.finetune`, `slim.evaluate`, `slim.judge`
and `slim.export` are the pipeline; `slim.bundled` is the model that comes along. Their dependencies are imported once
one of them is used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slim.api import calibrate, evaluate, export, finetune, judge, load, plan, prune, repair
    from slim.models import bundled

__version__ = "0.2.0"
__all__ = ["bundled", "calibrate", "evaluate", "export", "finetune", "judge", "load", "plan", "prune", "repair"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "bundled":
        from slim.models import bundled

        return bundled
    from slim import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
