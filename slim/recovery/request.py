"""Requests of the stages that cut a model and recover its quality: prune, repair, finetune."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from slim.core.request import Argument, Named, NameOrPath, Request, Saves
from slim.data.request import MayReadRows, ReadsRows
from slim.recovery.settings import RepairSettings, TrainSettings

Training = Literal["lora", "kd", "local"]
ORIGINAL = "the original model (default: the one that the checkpoint was cut from)"


class PruneRequest(MayReadRows, RepairSettings, Saves, Request):
    """Execute a plan: remove weights, repair the remaining ones, and save a checkpoint."""

    verb = "prune"
    earlier: ClassVar = {"repaired": "repair"}
    plan: Annotated[NameOrPath, Argument("PLAN")] = Field(description="plan file")
    repair: Annotated[bool, Named(("--repair/--no-repair",))] = Field(
        default=True,
        title="Repair",
        description="closed-form fit of the remaining weights to the original's outputs, without training",
    )
    rounds: int = Field(
        default=1, ge=1, title="Rounds", description="rounds to reach the budget in, each measured and repaired"
    )

    @model_validator(mode="after")
    def _rounds_are_repaired(self) -> Self:
        if self.rounds > 1 and not self.repair:
            raise ValueError(
                f"rounds={self.rounds}: every round is repaired before the next; leave out --no-repair, or the rounds"
            )
        return self


class RepairRequest(MayReadRows, RepairSettings, Saves, Request):
    """Fit the remaining weights of a pruned checkpoint to the original's outputs, without training."""

    verb = "repair"
    earlier: ClassVar = {"source": "folder"}
    folder: Annotated[NameOrPath, Argument("FOLDER")] = Field(description="checkpoint that Slim pruned")
    original: NameOrPath | None = Field(default=None, title="Original", description=ORIGINAL)


class FinetuneRequest(ReadsRows, TrainSettings, Saves, Request):
    """Train a checkpoint on its task, or on the original's predictions there, and save it where that helped."""

    verb = "finetune"
    earlier: ClassVar = {"source": "folder"}
    folder: Annotated[NameOrPath, Argument("FOLDER")] = Field(description="checkpoint, or any model")
    method: Training = Field(
        default="kd",
        title="Method",
        description="training targets: the rows' own tokens (lora), the original's predictions there (kd), or its "
        "outputs layer by layer (local)",
    )
    original: NameOrPath | None = Field(default=None, title="Original", description=ORIGINAL)
    resume: Annotated[bool, Named(("--resume/--restart",))] = Field(
        default=True, title="Resume", description="resume where the same command was stopped"
    )

    @model_validator(mode="before")
    @classmethod
    def _no_rank(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("rank") == 0:
            return {name: value for name, value in values.items() if name != "rank"} | {"weights": "full"}
        return values

    @model_validator(mode="after")
    def _adapter(self) -> Self:
        if not self.merge and self.weights == "full":
            raise ValueError("merge=False: weights='full' trains no adapter; leave one of the two out")
        if not self.merge and self.method == "local":
            raise ValueError("merge=False: method='local' merges each layer before it trains the next; leave one out")
        return self
