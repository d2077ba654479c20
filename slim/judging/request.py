"""The request of a judgment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from slim.core.errors import InputError
from slim.core.fields import Device, Dtype, Samples
from slim.core.request import NameOrPath, Request, Saves, Text
from slim.data.request import ReadsRows
from slim.evaluation.settings import AnswerSettings
from slim.judging.address import base_url
from slim.models.bundled import MODEL

Price = Annotated[float | None, Field(ge=0)]


def _criteria(option: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{option}={path!r}: it cannot be read; name a text file with the criteria.") from error


class JudgeRequest(ReadsRows, AnswerSettings, Saves, Request):
    """Compare the answers of two models: by a judge at an endpoint or on this machine, or with the dataset's own."""

    verb = "judge"
    pruned: NameOrPath = Field(title="Pruned model", description="checkpoint folder, or any other model")
    original: NameOrPath | None = Field(
        default=None, title="Original", description=f"{MODEL} (default: the original of the pruned model)"
    )
    samples: Samples = Field(default=50, description="rows to compare on")
    endpoint: Annotated[str, AfterValidator(base_url)] | None = Field(
        default=None,
        title="Endpoint",
        description="OpenAI-compatible URL; its key is read from SLIM_JUDGE_KEY or OPENAI_API_KEY",
    )
    judge_model: str | None = Field(
        default=None, title="Judge", description="name of the judge (default: the endpoint's only one)"
    )
    local_judge: NameOrPath | None = Field(
        default=None,
        title="Judge on this machine",
        description="model that is served on this machine for the run, in place of an endpoint",
    )
    rubric: Annotated[str | None, Text("rubric.txt", _criteria, lambda criteria: "rubric.txt")] = Field(
        default=None, title="Criteria", description="text file with the criteria"
    )
    measure: Literal["auto", "rouge-l", "exact"] = Field(
        default="auto", title="Measure", description="measure of the reference judge, used without any other"
    )
    min_coverage: float = Field(
        default=0.8, ge=0, le=1, title="Coverage", description="share of pairs to be judged before a winner is named"
    )
    concurrency: int | None = Field(
        default=None, ge=1, le=1000, title="Calls at a time", description="calls at a time (default: 16, local judge 1)"
    )
    timeout: float | None = Field(
        default=None,
        gt=0,
        title="Seconds per call",
        description="seconds that one attempt of a call may take (default: 60, local judge 600)",
    )
    retries: int = Field(default=5, ge=0, le=100, title="Retries", description="retries of a call that failed")
    max_tokens: int = Field(default=512, ge=1, title="Judge's tokens", description="tokens of a judge's answer")
    price_in: Price = Field(
        default=None, title="Price in", description="price of a million tokens that the judge reads"
    )
    price_out: Price = Field(default=None, title="Price out", description="price of a million tokens that it writes")
    device: Device = "auto"
    dtype: Dtype = "auto"

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if self.rubric is not None and not self.rubric.strip():
            raise ValueError("rubric: it is empty; write what makes an answer good, or leave it out")
        for name in ("endpoint", "judge_model"):
            if self.local_judge is not None and getattr(self, name) is not None:  # not shown: a URL may hold a key
                raise ValueError(f"{name}, local_judge={self.local_judge!r}: one run has one judge; leave one out")
        return self

    @classmethod
    def of_job(cls, arguments: Mapping[str, Any]) -> Self:
        """Return the request of a job; one of Slim 0.1 had both prices in a pair."""
        prices = dict(zip(("price_in", "price_out"), arguments.get("prices") or (), strict=False))
        return super().of_job({name: value for name, value in arguments.items() if name != "prices"} | prices)

    @property
    def asking(self) -> dict[str, Any]:
        """The settings of calls that were given, as fields of `Endpoint`."""
        names = ("concurrency", "timeout", "retries", "max_tokens")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    @property
    def prices(self) -> tuple[float, float] | None:
        """The prices of a million tokens that the judge reads and writes; None without prices."""
        if self.price_in is None and self.price_out is None:
            return None
        return self.price_in or 0.0, self.price_out or 0.0
