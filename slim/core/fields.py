"""Settings that several stages have: each with its bounds, title and help."""

from typing import Annotated, Literal

from pydantic import Field

from slim.core.request import Named

Positions = Literal["all", "answer"]
"""Predictions that count: those of every token, or those of the answer alone."""
Samples = Annotated[int, Named(("--samples", "--rows")), Field(ge=1, title="Rows")]
MaxLength = Annotated[
    int, Field(ge=2, title="Longest row, tokens", description="tokens of a row beyond which it is cut")
]
BatchSize = Annotated[int, Field(ge=1, title="Rows per forward", description="rows per forward pass")]
Seed = Annotated[int, Field(ge=0, title="Seed")]
Device = Annotated[str, Field(title="Device", description="auto, cpu, cuda or cuda:N")]
Dtype = Annotated[
    Literal["auto", "float32", "float64", "bfloat16"],
    Field(title="Number format", description="number format of the weights in memory; auto is float32"),
]
Layers = Annotated[
    Literal["auto", "memory", "file"],
    Field(
        title="Weights of the layers",
        description="in memory, or read from their file when a layer runs; auto reads where they would fill the memory",
    ),
]
Precision = Annotated[
    Literal["auto", "float32", "bfloat16"],
    Field(
        title="Matrix products in",
        description="number format of matrix products; auto is bfloat16 where the device has instructions for it",
    ),
]
