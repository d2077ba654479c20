"""One identity of a model for all caches: what it computes, wherever it lies and whatever it is called."""

import hashlib
import json
from typing import TYPE_CHECKING

from diskcache import Cache

from slim.core.cache import RowCache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slim.models.load import Loaded

NOT_COMPUTED = ("_name_or_path", "architectures", "dtype", "transformers_version")
"""Settings of a config that say nothing of what the model computes."""

OF_A_CALL = ("padding", "truncation")
"""Parts of a tokenizer that its last call may have set."""


def identity(loaded: "Loaded") -> str:
    """Return what stands for all that a model's figures depend on: weights, config, number format, kind of device.

    The same file of weights may stand beside another config, so the fingerprint alone does not tell two models apart.
    """
    config = json.loads(loaded.model.config.to_json_string(use_diff=False))
    computed = {name: value for name, value in config.items() if name not in NOT_COMPUTED}
    parts = [loaded.facts.fingerprint, computed, str(loaded.model.dtype), loaded.model.device.type]
    return json.dumps(parts, sort_keys=True)


def tokenization(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return what stands for how a tokenizer makes tokens of text; empty for one of another library."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    parts = {name: part for name, part in json.loads(backend.to_str()).items() if name not in OF_A_CALL}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def row_cache(cache: Cache | None, *models: "Loaded", **basis: object) -> RowCache:
    """Return the cached rows of a figure of these models; `basis` is what else it depends on, besides the row.

    Nothing is cached of a model whose weights have no fingerprint, as they were changed in memory.
    """
    known = all(one.facts.fingerprint for one in models)
    return RowCache(cache if known else None, models=list(map(identity, models)), **basis)
