"""The export stage: write a checkpoint as one file for a runtime."""

import os

from slim.core.reporter import SILENT, Reporter
from slim.serving.gguf import Exported, export_gguf
from slim.serving.request import ExportRequest


def export(request: ExportRequest, reporter: Reporter = SILENT) -> Exported:
    """Return the written file. Raises InputError for a model that the format cannot hold."""
    return export_gguf(os.fspath(request.folder), request.output, request.type, reporter)
