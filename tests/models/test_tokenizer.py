"""The tokenizer alone: from a folder, from the bundled file before it is unpacked, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from slim.core import workspace
from slim.core.errors import InputError
from slim.models import bundled
from slim.models.load import load_model
from slim.models.tokenizer import at_hand, load_tokenizer
from tests.pico import make_pico, pico_tokenizer, save_pico


def test_a_folder_needs_no_weights(tmp_path: Path) -> None:
    """The tokenizer is read without the model."""
    pico_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert load_tokenizer(str(tmp_path))("Why?")["input_ids"] == pico_tokenizer()("Why?")["input_ids"]
    assert at_hand(str(tmp_path))


def test_the_bundled_one_is_read_without_unpacking() -> None:
    """It takes a part of the time, and writes nothing."""
    tokenizer = load_tokenizer(bundled.NAME)
    assert "<|im_start|>" in str(tokenizer.chat_template)
    assert not list(workspace.home().glob("models/*"))
    assert at_hand(bundled.NAME)
    assert not at_hand("nobody/nothing")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "model 'nowhere' was not found"),
        ("{tmp}", "is a folder without a config.json"),
        ("{tmp}/model", "has no tokenizer that can be read"),
        ("{tmp}/model.gguf", "is not a GGUF that can be read"),
    ],
)
def test_models_without_a_tokenizer(tmp_path: Path, name: str, words: str) -> None:
    """One sentence."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.gguf").write_bytes(b"GGUF and nothing more")
    with pytest.raises(InputError, match=words) as caught:
        load_tokenizer(name.format(tmp=tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("read", [load_tokenizer, load_model])
def test_settings_that_no_text_can_be_encoded_with(tmp_path: Path, read: Callable[[str], object]) -> None:
    """Found when it is loaded, not in the middle of the work."""
    save_pico(make_pico("llama"), tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_max_length": ""}))
    with pytest.raises(InputError, match=f"model '{tmp_path}'.* can be read"):
        read(str(tmp_path))
