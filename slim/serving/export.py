"""The export stage: write a checkpoint as one file for a runtime."""

import os

from slim.core.errors import InputError
from slim.core.reporter import SILENT, Reporter
from slim.serving.gguf import Exported, export_gguf
from slim.serving.quantize import export_quantized
from slim.serving.request import ExportRequest
from slim.serving.source_types import types_of_source


def export(request: ExportRequest, reporter: Reporter = SILENT) -> Exported:
    """Return the written file. Raises InputError for a model that the format cannot hold."""
    folder = os.fspath(request.folder)
    if request.quantize == "none":
        own = types_of_source(folder) if request.type == "auto" else None
        if own is None or own.mixture is None:
            return export_gguf(folder, request.output, request.type, reporter)
        return export_quantized(folder, request.output, own.mixture, reporter)
    if request.type != "auto":
        raise InputError(f"type={request.type!r}: the quantiser chooses the types; leave out type or quantize.")
    return export_quantized(folder, request.output, request.quantize, reporter)
