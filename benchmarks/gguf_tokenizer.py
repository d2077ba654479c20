"""Slim's tokens of GGUF files beside llama.cpp's, over every line of text in a folder.

`python -m benchmarks.gguf_tokenizer FOLDER [--lines 4000]` takes the lines of `.txt` files and the texts
of `.jsonl` files, for the bundled model's own file and for one file per way to cut text, whose tokens were learned from
those lines uncut, so that each cut has its own tokens. Exits 1 where a line differs.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from slim.models import bundled
from slim.models.gguf_tokenizer import read_tokenizer
from slim.models.pre_tokenizers import CUTS
from tests.gguf_files import byte_level, llama_cpp_tokens, uncut

SHOWN = 3
"""Lines that are printed of those that differ."""


def texts_of(folder: Path) -> Iterator[str]:
    """Yield each line of plain files, and each text in the rows of others."""
    for file in sorted(folder.iterdir()):
        lines = file.read_text(encoding="utf-8").splitlines() if file.suffix in (".txt", ".jsonl") else []
        for line in filter(None, lines):
            if file.suffix == ".txt":
                yield line
            else:
                yield from (text for text in json.loads(line).values() if isinstance(text, str))


def main() -> int:
    """Print the number of lines that differ, for each file; return 1 where there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lines", type=int, default=4000)
    chosen = parser.parse_args()
    texts = list(dict.fromkeys(texts_of(chosen.folder)))
    random.Random(0).shuffle(texts)  # noqa: S311  nothing secret
    texts = texts[: chosen.lines]
    differ = 0
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        tokens, merges = uncut(texts, 6000)
        files = {"bundled model": bundled.bundled_gguf()}
        files |= {cut.names[0]: byte_level(work / cut.names[0], tokens, merges, cut.names[0]) for cut in CUTS}
        for name, file in files.items():
            (expected,) = llama_cpp_tokens([file], texts, work)
            found = read_tokenizer(file)(texts)["input_ids"]
            wrong = [text for text, one, other in zip(texts, found, expected, strict=True) if one != other]
            print(f"{name}: {len(wrong):,} of {len(texts):,} texts differ", *map(repr, wrong[:SHOWN]), sep="\n  ")
            differ += len(wrong)
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
