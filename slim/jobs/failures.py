"""Failure reasons: one sentence with the remedy, whatever library the error came from."""

import errno
import shutil
import signal
import traceback
from collections.abc import Iterator

from slim.core import workspace
from slim.core.errors import SlimError, without_secrets

MEMORY = (
    "memory ran out: take fewer rows at a time, shorter rows or another device, or end other programs; then start it "
    "again."
)
DISK = "no space left on the disk: free some space and start it again."
NETWORK = "the network was not reached: check the connection and start it again."
GONE = (
    "its process is gone: it was killed, by hand or by the system because memory ran out, or the machine went down; "
    "start it again, with fewer rows at a time where memory is short."
)
OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "memory allocation of",  # Rust's, of tokenizers and safetensors, which then end the process
    "memory allocation still failed",  # OpenBLAS's, which then ends the process
    "failed to map segment",  # the system's, of a library that is imported then
    "bad_alloc",
)
OF_DISK = ("no space left", "os error 28", "disk is full", "disk quota exceeded")
IO_ERROR = "disk i/o error"
"""All that SQLite says where it can neither map nor write a page: either memory or the disk has ended."""
PAGE = 2**20
"""Bytes below which a disk is full for SQLite."""
OF_NETWORK = ("ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "OfflineModeIsEnabled", "gaierror")
"""Names of the errors of libraries that may be in use, so that these need not be imported."""
LAST = 4
"""Last lines of a log that may hold the reason: an aborted library adds notes on how to see more."""


def failure_reason(error: BaseException) -> str:
    """The failure reason of a job that ended by `error`."""
    chain = list(_chain(error))
    said = str(error)
    for test, general in ((_is_disk, DISK), (_is_memory, MEMORY)):
        if any(map(test, chain)):
            return said if isinstance(error, SlimError) and test(SlimError(said)) else general
    if isinstance(error, SlimError):
        return said
    if any(_is_network(one) for one in chain):
        return NETWORK
    return str(SlimError(f"{type(error).__name__}: {error}"))  # a line without secrets


def traced(error: BaseException) -> str:
    """The whole traceback of an error, without secrets, for a log."""
    return without_secrets("".join(traceback.format_exception(error)))


def death_reason(code: int, log: str) -> str:
    """The failure reason of a worker that ended with an exit code, or by signal −code, without writing why."""
    if code == -signal.SIGKILL:
        return GONE
    words = log.strip().splitlines()[-LAST:] or [""]
    if words[-1].startswith("slim: "):
        return words[-1].removeprefix("slim: ")
    if words[-1].startswith("MemoryError") or _is_memory(SlimError(" ".join(words))):
        return MEMORY
    if code < 0:
        return f"its process ended by {signal.Signals(-code).name}; see its log, and start it again."
    return f"its process ended with code {code} without a reason; see its log, and start it again."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_memory(error: BaseException) -> bool:
    number = getattr(error, "errno", None)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or number == errno.ENOMEM
    return named or any(words in str(error).lower() for words in OF_MEMORY) or (_is_io(error) and not _full())


def _is_disk(error: BaseException) -> bool:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or any(words in str(error).lower() for words in OF_DISK) or (_is_io(error) and _full())


def _is_io(error: BaseException) -> bool:
    return IO_ERROR in str(error).lower()


def _full() -> bool:
    return shutil.disk_usage(workspace.home()).free < PAGE


def _is_network(error: BaseException) -> bool:
    return any(kind.__name__ in OF_NETWORK for kind in type(error).__mro__)
