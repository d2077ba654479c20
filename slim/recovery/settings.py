"""What a person chooses for a training, whatever it is that learns."""

from typing import Literal

import torch
from pydantic import Field

from slim.core.records import Record

BACKWARD = {"adapter": 1.6, "full": 2.1}
"""What a step takes besides its forward, in forwards, measured on the bundled model."""


class TrainSettings(Record):
    """What a person chooses for a fine-tuning."""

    steps: int = Field(default=200, ge=1, description="of the optimiser; local: in each layer")
    samples: int = Field(default=640, ge=4, description="rows drawn: to learn from, to choose by and to tell")
    batch_size: int = Field(default=8, ge=1, description="rows of a step")
    micro_batch: int = Field(default=4, ge=1, description="rows that are in memory at once")
    max_length: int = Field(default=256, ge=2, description="tokens of a row beyond which it is cut")
    positions: Literal["all", "answer"] = Field(default="answer", description="predictions that are learnt and told of")
    weights: Literal["adapter", "full"] = Field(default="adapter", description="LoRA on every matrix, or all weights")
    rank: int = Field(default=16, ge=1, description="of the adapter")
    learning_rate: float = Field(default=3e-4, gt=0, description="its highest; it rises, then falls as a cosine")
    warmup: float = Field(default=0.05, ge=0, lt=1, description="share of the steps in which it rises")
    temperature: float = Field(default=1.0, gt=0, description="kd: at which distributions are compared")
    task_weight: float = Field(default=0.0, ge=0, le=1, description="kd: of the rows' own tokens beside the original's")
    evaluations: int = Field(default=8, ge=1, description="looks at the validation rows; the state is saved at each")
    patience: int = Field(default=3, ge=1, description="looks without a better loss after which it stops")
    checkpointing: bool = Field(default=False, description="less memory for a third more time")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of matrix products; auto is bfloat16 where the device has instructions for it"
    )
    merge: bool = Field(default=True, description="false: the adapter is saved, not the model with it")
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    dtype: Literal["auto", "float32", "float64", "bfloat16"] = Field(default="auto", description="of the weights")

    @property
    def every(self) -> int:
        """Steps from one look to the next."""
        return max(1, -(-self.steps // self.evaluations))


def precision_of(settings: TrainSettings, device: torch.device) -> str:
    """What matrix products are computed in; float32 stands for the format of the weights."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:
        found = torch.cpu.get_capabilities()
        able = found.get("avx512_bf16") or found.get("amx_bf16")
    return "bfloat16" if able and settings.dtype != "float64" else "float32"
