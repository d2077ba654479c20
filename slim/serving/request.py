"""Requests of the stages that publish a checkpoint: export, push."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from slim.core.request import Argument, Located, Named, NameOrPath, Request


class ExportRequest(Request):
    """Write a checkpoint as one file for llama.cpp."""

    verb = "export"
    earlier: ClassVar = {"source": "folder", "number_format": "type"}
    folder: Annotated[NameOrPath, Argument("FOLDER")] = Field(description="checkpoint folder, or any other model")
    format: Literal["gguf"] = Field(
        default="gguf", title="Format", description="file format; gguf is that of llama.cpp"
    )
    type: Literal["auto", "f32", "f16", "bf16", "q8_0"] = Field(
        default="auto",
        title="Number format",
        description="number format; auto is that of the GGUF file the model came from, or else the stored one",
    )
    quantize: Literal["none", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k_m", "q5_k_m", "q6_k", "iq4_xs"] = Field(
        default="none",
        title="Quantise",
        description="mixture of types that llama.cpp's own quantiser makes of the file",
    )
    output: Annotated[Path, Located()] = Field(title="File", description="new file")


class PushRequest(Request):
    """List the files of a push to a model Hub, and with --yes send them."""

    verb = "push"
    folder: Annotated[NameOrPath, Argument("FOLDER")] = Field(description="checkpoint folder")
    repository: Annotated[str, Argument("REPO")] = Field(title="Repository", description="owner/name on the Hub")
    private: Annotated[bool, Named(("--private",))] = Field(
        default=False, title="Private", description="a private repository, where it is new"
    )
