"""How text is cut before its pieces are merged, by the names of `tokenizer.ggml.pre` in GGUF files.

The patterns are those by which llama.cpp cuts (src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp). Each is
applied to the pieces of the one before; matches and the text between them stay apart. For tekken and gpt-4o llama.cpp
takes ASCII letters for all that have a case; here the patterns are those that the models were trained with.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from slim.core.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

ENDINGS = "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
ASCII_SIGNS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _words(digits: str = "", letters: str = r"\p{L}", beside: str = "", after: str = r"[\r\n]*") -> str:
    """The pattern of newer families: a word with the sign before it, `digits` of a number, signs and what ends them."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?[{letters}]+"
    return rf"(?:{ENDINGS})|{word}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}{beside}]+{after}|{SPACES}"


def _by_case(ending: str, digits: str) -> str:
    """A word ends where a capital letter follows a small one; an `ending` belongs to its word."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{UPPER}*{LOWER}+{ending}|{before}{UPPER}+{LOWER}*{ending}"
    return rf"{words}|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"


@dataclass(frozen=True)
class Cut:
    """One way to cut, with the settings that llama.cpp has for its names."""

    names: tuple[str, ...]
    """An export writes the first."""
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """Whether a piece that is a token stays whole, whatever merges would give."""
    add_bos: bool = False
    """Whether a text begins with the BOS token where the file does not say."""

    def pre_tokenizer(self) -> "PreTokenizer":
        """Return it as the tokenizers library has it, with each byte as one character at the end."""
        from tokenizers import Regex, pre_tokenizers

        cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


CUTS = (
    Cut(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4"), (GPT2,)),
    Cut(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"), (r"\p{N}", GPT2)),
    Cut(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (_words("{1,3}"),),
        ignore_merges=True,
        add_bos=True,
    ),
    Cut(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"), (_words(),)),
    Cut(("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), (_words("{1,3}"),)),
    Cut(("qwen35",), (_words(letters=r"\p{L}\p{M}", beside=r"\p{M}"),)),
    Cut(("seed-coder",), (_words(beside=r"\r\n", after=""),)),
    Cut(("tekken",), (_by_case("", ""),), ignore_merges=True, add_bos=True),
    Cut(("gpt-4o", "llama4", "kanana2"), (_by_case(f"(?:{ENDINGS})?", "{1,3}"),)),
    Cut(
        ("deepseek-v3", "hunyuan-dense"),
        (
            r"\p{N}{1,3}",
            "[一-龥\u3040-ゟ゠-ヿ]+",
            rf"{ASCII_SIGNS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
            rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}",
        ),
    ),
    Cut(("default",), (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)
PROBE = "I'll say DON'T: 12345 a_b+=c!!\n\n  def\r\n\tx x\u0301y camelCase /\n"
"""A text that each of them cuts into other pieces, and that stays as it is in Unicode's composed form."""
BY_NAME = {name: cut for cut in CUTS for name in cut.names}


def cut_of(name: str, file: str) -> Cut:
    """Return the way to cut of a GGUF file that names it. Raises InputError for a name that is not known here."""
    if name not in BY_NAME:
        raise InputError(
            f"model file {file!r}: it cuts its text in the way {name!r} (tokenizer.ggml.pre), and Slim knows "
            f"{', '.join(BY_NAME)}: take the Hugging Face folder that the file was converted from."
        )
    return BY_NAME[name]


def name_of(tokenizer: "Tokenizer") -> str | None:
    """Return the name of a byte-level tokenizer's way to cut; None where it has none here."""
    normalizer, cut, model = tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model
    if cut is None or (normalizer is not None and normalizer.normalize_str(PROBE) != PROBE):
        return None
    found = cut.pre_tokenize_str(PROBE)
    for known in CUTS:
        if known.ignore_merges == model.ignore_merges and known.pre_tokenizer().pre_tokenize_str(PROBE) == found:
            return known.names[0]
    return None
