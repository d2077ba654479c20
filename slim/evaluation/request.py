"""The request of an evaluation."""

from typing import Annotated, ClassVar

from pydantic import Field

from slim.core.codecs import names
from slim.core.request import Argument, Named, NameOrPath, Request, Saves
from slim.data.request import MayReadRows
from slim.evaluation.settings import EvaluationSettings


class EvaluateRequest(MayReadRows, EvaluationSettings, Saves, Request):
    """Measure checkpoints beside the original: quality on held-out rows, standard tasks, speed and memory."""

    verb = "evaluate"
    earlier: ClassVar = {"standard": "tasks"}
    checkpoints: Annotated[tuple[NameOrPath, ...], Argument("FOLDER...")] = Field(
        min_length=1, description="checkpoints, or any models"
    )
    baseline: NameOrPath | None = Field(
        default=None,
        title="Compare with",
        description="model to compare with (default: the original of the checkpoints)",
    )
    tasks: Annotated[tuple[NameOrPath, ...], names("arc_easy,hellaswag,mine.yaml")] = Field(
        default=(),
        title="Standard tasks",
        description="standard tasks by name, or YAML files of tasks: arc_easy,hellaswag,mine.yaml",
    )
    speed: Annotated[bool, Named(("--speed",))] = Field(
        default=False, title="Speed and memory", description="timing of all models in turn, and their peak memory"
    )
