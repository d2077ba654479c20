"""Why a job failed, in one sentence with the remedy, whatever library the error came from."""

import errno
import signal
import traceback
from collections.abc import Iterator

from slim.core.errors import SlimError, without_secrets

MEMORY = (
    "memory ran out: take fewer rows at a time, shorter rows or another device, or end what else runs here; then start "
    "it again."
)
DISK = "no space left on the disk: free some space and start it again."
NETWORK = "the network was not reached: check the connection and start it again."
GONE = (
    "its process is gone: it was killed, by hand or by the system because memory ran out, or the machine went down: "
    "start it again, with fewer rows at a time where memory is short."
)
OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "memory allocation of",  # Rust's, of tokenizers and safetensors, which then end the process
    "bad_alloc",
)
OF_DISK = ("no space left", "os error 28", "disk is full", "disk quota exceeded")
OF_NETWORK = ("ConnectError", "ConnectionError", "ConnectTimeout", "ReadTimeout", "OfflineModeIsEnabled", "gaierror")
"""Names of the errors of the libraries that may be in use, which need not be loaded to be known."""
LAST = 4
"""Lines of a log that are last words: an aborted library's, with its notes on how to see more."""


def failure_reason(error: BaseException) -> str:
    """What is said of a job that ended by `error`."""
    chain = list(_chain(error))
    said = str(error)
    for test, general in ((_is_memory, MEMORY), (_is_disk, DISK)):
        if any(map(test, chain)):
            return said if isinstance(error, SlimError) and test(SlimError(said)) else general
    if isinstance(error, SlimError):
        return said
    if any(_is_network(one) for one in chain):
        return NETWORK
    return str(SlimError(f"{type(error).__name__}: {error}"))  # a line without secrets


def traced(error: BaseException) -> str:
    """Where an error came from, for a log: the whole traceback, without secrets."""
    return without_secrets("".join(traceback.format_exception(error)))


def death_reason(code: int, log: str) -> str:
    """What is said of a worker that ended with an exit code, or by the signal −code, and did not write why."""
    if code == -signal.SIGKILL:
        return GONE
    words = log.strip().splitlines()[-LAST:] or [""]
    if words[-1].startswith("slim: "):
        return words[-1].removeprefix("slim: ")
    if words[-1].startswith("MemoryError") or _is_memory(SlimError(" ".join(words))):
        return MEMORY
    if code < 0:
        return f"its process ended by {signal.Signals(-code).name}: see its log, and start it again."
    return f"its process ended with code {code} before it could say why: see its log, and start it again."


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_memory(error: BaseException) -> bool:
    number = getattr(error, "errno", None)
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or number == errno.ENOMEM
    return named or any(words in str(error).lower() for words in OF_MEMORY)


def _is_disk(error: BaseException) -> bool:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or any(words in str(error).lower() for words in OF_DISK)


def _is_network(error: BaseException) -> bool:
    return any(kind.__name__ in OF_NETWORK for kind in type(error).__mro__)
