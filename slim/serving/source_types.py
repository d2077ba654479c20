"""The number formats of the GGUF file that a model was read from, so that what is cut from it goes out in the same."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader

from slim.models import bundled
from slim.models.original import named_original

FILE_TYPE = "general.file_type"
FILE_TYPES = {
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "q5_0": 8,
    "q5_1": 9,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
    "iq4_xs": 30,
}
"""llama.cpp's number of each mixture of types that its quantiser makes (enum llama_ftype)."""
WRITTEN = {GGMLQuantizationType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")}
"""Types that the package gguf writes."""


@dataclass(frozen=True)
class SourceTypes:
    """The types of a file's matrices."""

    file: Path
    kinds: dict[str, GGMLQuantizationType]
    """The type of most matrices of each kind, such as `attn_q`."""
    mixture: str | None
    """The mixture of types that a quantiser has to make; None where each type is written as it is."""

    @property
    def most(self) -> GGMLQuantizationType:
        """The type of most kinds of matrices."""
        return Counter(self.kinds.values()).most_common(1)[0][0]

    def words(self, size: int, kind: str = "in its types") -> str:
        """The file that was given and the one of `size` bytes that is written from it."""
        return f"{self.file.name} has {self.file.stat().st_size / 1e6:,.1f} MB; {kind} it is {size / 1e6:,.1f} MB now"


def types_of_source(source: str) -> SourceTypes | None:
    """Return the types of the GGUF file that a model, or the one it was cut from, was read from; None without one."""
    origin = named_original(source) or source
    file = bundled.bundled_gguf() if origin == bundled.NAME else Path(origin)
    if file.suffix != ".gguf" or not file.is_file():
        return None
    reader = GGUFReader(file)
    found: dict[str, Counter[GGMLQuantizationType]] = {}
    for tensor in reader.tensors:
        if len(tensor.shape) > 1:
            found.setdefault(kind_of(tensor.name), Counter())[tensor.tensor_type] += 1
    field = reader.fields.get(FILE_TYPE)
    kinds = {kind: counts.most_common(1)[0][0] for kind, counts in found.items()}
    if set(kinds.values()) <= WRITTEN:
        return SourceTypes(file, kinds, None)
    number = field.contents() if field else None
    mixture = next((name for name, one in FILE_TYPES.items() if one == number), None)
    return SourceTypes(file, kinds, mixture) if mixture else None


def kind_of(name: str) -> str:
    """Return the kind of a tensor by its name in a GGUF file: `attn_q` of `blk.3.attn_q.weight`."""
    return name.rsplit(".", 2)[-2]
