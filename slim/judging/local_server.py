"""A local judge: a model's server that is started for the run and ends with it, whatever ends the run.

A model is served by `transformers serve`, unless its layers differ, or its generation config does not name all tokens
that end an answer: then by `slim serve`. The server is a child in a
session of its own, which the parent watchdog ends with its parent (`slim.judging.parent_watch`). It listens on this
machine alone and opens no connection to another.
"""

import gc
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx2
import psutil

from slim.core import launch
from slim.core.errors import InputError, SlimError
from slim.core.hub import MODEL_FILES, snapshot
from slim.core.reporter import SILENT, Reporter
from slim.judging.address import KEYS
from slim.judging.endpoint import Endpoint, Messages
from slim.models.source import digest

PATIENCE = 600.0
"""Seconds that a server has to load its model and answer a first call."""
ASKING = {"concurrency": 1, "timeout": 600.0}
"""Default settings of a local server's calls: it answers one call after the other, and may be slow."""
LINES = 3
"""Last lines of a server's log that are quoted in an error."""
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""The model is on the disk already, so the server needs no network."""
_HELLO: Messages = [{"role": "system", "content": "Answer."}, {"role": "user", "content": "Hello"}]


@dataclass(frozen=True)
class LocalJudge:
    """A model that judges. The `fingerprint` is of its files, whatever its folder and its server's address are."""

    source: str
    folder: Path
    fingerprint: str
    by_slim: bool = False
    """Whether `slim serve` serves it, under its folder's name, and not transformers' own server."""

    def endpoint(self, asking: dict[str, Any]) -> Endpoint:
        """The endpoint, `asking` being fields of `Endpoint`. The address is set once the server has started."""
        model = self.folder.resolve().name if self.by_slim else str(self.folder)
        return Endpoint.checked(url="", model=model, identity=f"local:{self.fingerprint}", **{**ASKING, **asking})

    @contextmanager
    def started(
        self, endpoint: Endpoint, device: str = "auto", reporter: Reporter = SILENT, patience: float = PATIENCE
    ) -> Iterator[Endpoint]:
        """The endpoint with its server's address, once it has answered; the server is stopped when the block ends.

        Raises SlimError with the end of its log where it ends or does not answer for `patience` seconds.
        """
        import torch

        reporter.progress(0, 1, "Starting the judge")
        if torch.cuda.is_available():  # the models that answered are freed, and torch still reserves their memory
            gc.collect()
            torch.cuda.empty_cache()
        environment = {name: value for name, value in launch.environment(**QUIET).items() if name not in KEYS}
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                launch.module_command("slim.judging.parent_watch", *self._command(device)),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                yield self._answering(process, endpoint, log, patience)
            finally:
                _end(process)

    def _command(self, device: str) -> list[str]:
        """The serving module with its arguments. The port is any free one."""
        module = "slim" if self.by_slim else "transformers.cli.transformers"
        return [module, "serve", str(self.folder), "--host", "127.0.0.1", "--port", "0", "--device", device]

    def _answering(
        self, process: subprocess.Popen[bytes], endpoint: Endpoint, log: IO[bytes], patience: float
    ) -> Endpoint:
        """The endpoint at the port where the server listens, once it answers a chat request."""
        deadline = time.monotonic() + patience
        with httpx2.Client(trust_env=False) as client:
            while (left := deadline - time.monotonic()) > 0:
                if process.poll() is not None:
                    raise SlimError(f"local_judge={self.source!r}: its server ended ({_last_words(log)}).")
                if (port := _port(process.pid)) is not None:
                    made = endpoint.model_copy(update={"url": f"http://127.0.0.1:{port}/v1"})
                    if (takes_system := self._greeted(client, made, log, left)) is not None:
                        return made.model_copy(update={"system_turn": takes_system})
                time.sleep(0.05)
        raise SlimError(
            f"local_judge={self.source!r}: its server did not answer within {patience:g} s ({_last_words(log)})."
        )

    def _greeted(self, client: httpx2.Client, endpoint: Endpoint, log: IO[bytes], left: float) -> bool | None:
        """Return whether the model accepts a system turn; None where the server does not answer yet."""
        status = 0
        for turns in (_HELLO, _HELLO[1:]):
            body = {"model": endpoint.model, "messages": turns, "max_tokens": 1, "temperature": 0}
            try:
                answer = client.post(f"{endpoint.url}/chat/completions", json=body, timeout=left)
            except httpx2.TransportError:
                return None
            if (status := answer.status_code) == 200:
                return turns is _HELLO
        raise SlimError(
            f"local_judge={self.source!r}: no chat, HTTP {status} ({_last_words(log)}); name another model."
        )


def find_local_judge(source: str, reporter: Reporter = SILENT) -> LocalJudge:
    """The judge that `source` names: `bundled:smollm2-135m`, a folder, a .gguf file or a Hub id, which is downloaded.

    Raises InputError for any other source, and for a model without safetensors weights.
    """
    from slim.models.load import locate

    place = Path(locate(source, reporter))
    of_hub = not place.is_dir()
    folder = snapshot(str(place)) if of_hub else place.absolute()
    if not any((folder / f"model.safetensors{suffix}").is_file() for suffix in ("", ".index.json")):
        raise InputError(f"local_judge={source!r}: it has no safetensors weights; name a model that has.")
    files = {file for pattern in MODEL_FILES for file in folder.glob(pattern)}
    return LocalJudge(source, folder, folder.name if of_hub else digest(sorted(files)), _needs_slim(folder))


def _needs_slim(folder: Path) -> bool:
    """Return whether transformers' own server cannot load a model, or would not end its answers everywhere."""
    from slim.models.architectures import ARCHITECTURES

    try:
        config = json.loads((folder / "config.json").read_bytes())
        if config.get("per_layer_config"):
            return True
        known = config.get("model_type") in ARCHITECTURES
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"local_judge={str(folder)!r}: its config.json cannot be read; name another model.") from error
    return known and bool(_unnamed_stops(folder))


def _unnamed_stops(folder: Path) -> list[int]:
    """Return the tokens that end an answer and that the model's generation config does not name."""
    from transformers import AutoConfig, AutoTokenizer

    from slim.models.load import generation_config
    from slim.models.stops import ids_of, stop_tokens

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(folder), **local)
        named = generation_config(folder, config)
        stops = stop_tokens(AutoTokenizer.from_pretrained(str(folder), **local), config, named)
    except Exception:  # its server says what is wrong with it
        return []
    return [one.id for one in stops if one.id not in ids_of(named.eos_token_id)]


def _port(pid: int) -> int | None:
    """The port where a process listens."""
    try:
        found = psutil.Process(pid).net_connections("inet")
    except psutil.Error:
        return None
    return next((one.laddr.port for one in found if one.status == psutil.CONN_LISTEN), None)


def _last_words(log: IO[bytes]) -> str:
    """The last lines of a server's log."""
    start = max(0, os.fstat(log.fileno()).st_size - 4000)
    said = os.pread(log.fileno(), 4000, start).decode(errors="replace")  # seeking would move the server's own offset
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " / ".join(lines[-LINES:]) or "its log is empty"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and all processes that it started: it holds no state to save."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        process.communicate()
