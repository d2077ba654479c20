"""Small GGUF files with a tokenizer of one's own, and the tokens that llama.cpp makes with them."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

WIDTH = 32
SPECIAL = ("<unk>", "<s>", "</s>", "<|im start|>", "<｜end｜>")
"""Two of them have characters that no byte-level token has."""
TOKENIZE = """
import json, sys, urllib.request
import xllamacpp as runtime
files, asked, answered = json.load(open(sys.argv[1])), json.load(open(sys.argv[2])), []
for file in files:
    params = runtime.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = file, 64, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = runtime.Server(params)
    found = []
    for text in asked:
        body = json.dumps({"content": text, "add_special": True, "parse_special": True}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + "/tokenize", body, headers)
        found.append(json.loads(urllib.request.urlopen(request, timeout=120).read())["tokens"])
    answered.append(found)
    del server
json.dump(answered, open(sys.argv[3], "w"))
"""


def llama_cpp_tokens(files: Sequence[Path], texts: Sequence[str], work: Path) -> list[list[list[int]]]:
    """Return the ids of each text by llama.cpp, for each of the files."""
    places = [work / f"{name}.json" for name in ("files", "asked", "answered")]
    places[0].write_text(json.dumps(list(map(str, files))))
    places[1].write_text(json.dumps(list(texts)))
    command = [sys.executable, "-c", TOKENIZE, *map(str, places)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found: list[list[list[int]]] = json.loads(places[2].read_text())
    return found


def uncut(texts: Sequence[str], size: int) -> tuple[list[str], list[str]]:
    """Return tokens and merges learned from texts that were not cut: each cut has its own tokens then."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=alphabet, max_token_length=16
    )
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    return sorted(state["vocab"], key=state["vocab"].__getitem__), [" ".join(pair) for pair in state["merges"]]


def write_gguf(
    file: Path, tokens: Sequence[str], *, model: str = "gpt2", settings: Mapping[str, object], kinds: Sequence[int]
) -> Path:
    """Write a llama of one layer with these tokens; `settings` are named as they are after `tokenizer.ggml.`."""
    writer, rng = GGUFWriter(file, "llama"), np.random.default_rng(0)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(model)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(kinds))
    for name, value in settings.items():
        if isinstance(value, bool):
            writer.add_bool(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, str):
            writer.add_string(f"tokenizer.ggml.{name}", value)
        elif isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{name}", value)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in matrices}
    shapes |= {"token_embd.weight": (len(tokens), WIDTH)}
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def byte_level(file: Path, tokens: Sequence[str], merges: Sequence[str], name: str, **settings: object) -> Path:
    """Write a file whose text is cut as `name` says."""
    kinds = [TokenType.CONTROL if token in SPECIAL else TokenType.NORMAL for token in tokens]
    told = {"pre": name, "merges": list(merges), "bos_token_id": 1, "eos_token_id": 2, **settings}
    return write_gguf(file, tokens, settings=told, kinds=kinds)


def sentencepiece(file: Path, texts: Sequence[str], size: int, **settings: object) -> Path:
    """Write a file of the older kind: tokens learned from texts with marks for spaces, a score each, and bytes."""
    marked = [text.replace(" ", "▁") for text in texts]
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(BPE())
    tokenizer.train_from_iterator(marked, trainers.BpeTrainer(vocab_size=size, max_token_length=16))
    state = json.loads(tokenizer.to_str())["model"]
    merged = [token for token in dict.fromkeys(map("".join, state["merges"])) if token not in first]
    letters = [token for token in state["vocab"] if len(token) == 1]
    tokens = [*first, *merged, *letters]
    scores = [0.0] * len(first) + [-float(rank) for rank in range(len(merged) + len(letters))]
    kinds = [TokenType.UNKNOWN, *[TokenType.CONTROL] * 2, *[TokenType.BYTE] * 256]
    kinds += [TokenType.NORMAL] * (len(tokens) - len(first))
    return write_gguf(file, tokens, model="llama", settings={"scores": scores, **settings}, kinds=kinds)


TEXT = (
    "The old ship's captain said: \"We're off at 12:30, aren't we?\"\n\n  Nobody knew; it'd been 1984 since.\tDÉJÀ vu! "
)


def trained(cut: Any, **extra: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with merges of its own, that cuts text with `cut` first."""
    tokenizer = Tokenizer(BPE(**extra))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<bos>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
