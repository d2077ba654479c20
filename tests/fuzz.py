"""Helpers that property tests share: odd values, files that are nearly right, and what a parser may do with them.

Two tiers: a few cases of each property with every run, always the same; and with `SLIM_FUZZ=N` N cases of each, other
ones every time (`make fuzz`).
"""

import copy
import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from slim.core.errors import LONGEST, SlimError

CASES = int(os.environ.get("SLIM_FUZZ") or 0)
"""Of each property in the opt-in tier; 0 in the usual one."""
settings.register_profile(
    "slim",
    max_examples=CASES or 60,
    derandomize=not CASES,
    database=None,
    deadline=None,  # what hangs meets the test's own limit of time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    print_blob=True,
)
settings.load_profile("slim")
logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns of each odd config, many times
Given = TypeVar("Given")


def cases(share: float) -> settings:
    """Settings for a property whose cases take long: a share of the usual number."""
    return settings(max_examples=max(5, round((CASES or 60) * share)))


def clean(read: Callable[[], Given], *named: str) -> Given | None:
    """The result of a parser; None where it refused in one line that can be printed and has the words `named` in it.

    Whatever else it raises is a fault.
    """
    try:
        return read()
    except SlimError as error:
        said = str(error)
        assert said.strip()
        assert len(said) <= LONGEST
        assert not any(ord(sign) < 32 or sign in "\x7f\x85\u2028\u2029" for sign in said)
        said.encode()
        for words in named:
            assert words in said
        return None


TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", " ", "\0", "a\nb", "\x1b[31m", "\ud800", "é" * 300, "x" * 5000, "../..", "/dev/zero", "~x/y"]),
    st.sampled_from(["NaN", "inf", "-1", "1e999", "None", "true", "{}", "[]", "\u202eabc", "٣", "²"]),
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 5, 2**16, 2**31, 2**53, 2**63, -(2**63), 2**64, 10**30, 10**400]),
    st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.5, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")]),
    st.integers(),
    st.floats(),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)


def _nested(value: Any, depth: int, kind: bool) -> Any:
    for _ in range(depth):
        value = [value] if kind else {"a": value}
    return value


ODD = st.one_of(
    LEAVES,
    st.recursive(LEAVES, lambda one: st.lists(one, max_size=3) | st.dictionaries(TEXTS, one, max_size=3), max_leaves=6),
    st.builds(_nested, LEAVES, st.sampled_from([1, 30, 190, 300]), st.booleans()),
)
"""A value that is somewhere between unexpected and impossible."""


NOTHING = (b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"a":' * 50_000, b"\xff" * 9, b"1" * 9000)
"""Contents that no file of ours has."""


@st.composite
def edited(draw: st.DrawFn, base: Any, most: int = 3) -> Any:
    """`base` with up to `most` places dropped, replaced, doubled, moved or renamed."""
    value = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, most))):
        value = _one_edit(draw, value)
    return value


def _one_edit(draw: st.DrawFn, value: Any) -> Any:
    holder: Any = None
    here, key = value, None
    while isinstance(here, dict | list) and here and (holder is None or draw(st.integers(0, 3))):
        holder = here
        key = draw(st.sampled_from(list(here) if isinstance(here, dict) else range(len(here))))
        here = holder[key]
    if holder is None:
        return draw(ODD)
    action = draw(st.sampled_from(["odd", "odd", "number", "drop", "double", "move", "rename", "like"]))
    if action == "odd":
        holder[key] = draw(ODD)
    elif action == "number":
        holder[key] = draw(NUMBERS)
    elif action == "drop":
        del holder[key]
    elif action == "double" and isinstance(holder, list):
        holder.insert(draw(st.integers(0, len(holder))), copy.deepcopy(here))
    elif action == "move":
        other = draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
        holder[key], holder[other] = holder[other], holder[key]
    elif action == "rename" and isinstance(holder, dict):
        holder[draw(TEXTS)] = holder.pop(key)
    elif isinstance(here, int | float) and not isinstance(here, bool):
        holder[key] = draw(st.sampled_from([here + 1, -here, here * 2, here % 2 + 0.0, str(here)]))
    elif isinstance(here, str):
        holder[key] = here + draw(TEXTS)
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes cut off, flipped, put in, taken out, doubled, in another encoding, or others altogether."""
    start, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
    before, here, after = content[:start], content[start : start + length], content[start + length :]
    flipped = bytearray(content)
    for _ in range(draw(st.integers(1, 6)) if content else 0):
        flipped[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    ways = [
        bytes(flipped),
        before,
        before + draw(st.binary(max_size=40)) + here + after,
        before + after,
        before + here + here + after,
        before + bytes(length) + after,
        b"\xef\xbb\xbf" + content,
        content.decode(errors="replace").encode("utf-16"),
        draw(st.sampled_from(NOTHING)),
    ]
    return draw(st.sampled_from(ways))


@st.composite
def json_files(draw: st.DrawFn, base: Any) -> bytes:
    """A JSON file that is nearly the one of `base`: edited, with a name twice, damaged, or as it is."""
    value = draw(st.one_of(edited(base), edited(base), edited(base), st.just(base)))
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    if isinstance(value, dict) and value and draw(st.integers(0, 5)) == 0:
        name = draw(st.sampled_from(list(value)))
        text = text.replace("{", f"{{{json.dumps(name)}: {json.dumps(draw(ODD))}, ", 1)
    content = text.encode(errors="surrogatepass")
    return draw(damaged(content)) if draw(st.integers(0, 4)) == 0 else content


def values(tree: Any) -> Iterator[Any]:
    """Everything in a tree of plain values."""
    left = [tree]
    while left:
        value = left.pop()
        yield value
        if isinstance(value, dict):
            left += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            left += value
