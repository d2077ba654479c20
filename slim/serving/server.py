"""An OpenAI-compatible server for any model: transformers' own, with a model that Slim loaded."""

import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from transformers import PreTrainedModel
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import BaseGenerateManager, GenerateManager, GenerationState

from slim.core import paths
from slim.core.errors import InputError
from slim.models.load import Loaded

GRACE = 2
"""Seconds for running answers to end once the server is stopped."""


class OneModel(ModelManager):
    """Serves one loaded model under its name and never loads another.

    transformers itself would load any model that a request names, and by the class in the config's `architectures`,
    which is not that of a checkpoint whose layers differ.
    """

    def __init__(self, loaded: Loaded, name: str) -> None:
        self._loaded = loaded
        super().__init__(force_model=name)

    @staticmethod
    def process_model_name(model_id: str) -> str:
        """Return the name as it is, without a Hub revision after it."""
        return model_id

    def _load_processor(self, model_id_and_revision: str, gguf_file: str | None = None) -> Any:
        self._check(model_id_and_revision, gguf_file)
        return self._loaded.tokenizer

    def _load_model(
        self,
        model_id_and_revision: str,
        tqdm_class: type | None = None,
        progress_callback: Callable[..., Any] | None = None,
        gguf_file: str | None = None,
    ) -> PreTrainedModel:
        self._check(model_id_and_revision, gguf_file)
        return self._loaded.model

    def _check(self, name: str, gguf_file: str | None) -> None:
        if name != self.force_model or gguf_file:
            raise ValueError(f"model={name!r}: it is not served here; ask for {self.force_model!r}.")


class TooLong(ValueError):
    """A prompt that the model's context does not hold."""


class WithinContext(GenerateManager):
    """Generates answers to prompts that fit in the model's context, and refuses the others."""

    def generate_streaming(self, model: PreTrainedModel, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        _check_length(model, inputs)
        return super().generate_streaming(model, processor, inputs, *args, **kwargs)

    async def generate_non_streaming(
        self, model: PreTrainedModel, processor: Any, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        _check_length(model, inputs)
        return await super().generate_non_streaming(model, processor, inputs, *args, **kwargs)


class OneState(GenerationState):
    """One thread of answers, whatever name a request gives."""

    def __init__(self) -> None:
        super().__init__()
        self._manager = WithinContext()

    def get_manager(self, model_id: str, use_cb: bool = False) -> BaseGenerateManager:
        return self._manager


def _check_length(model: PreTrainedModel, inputs: Any) -> None:
    """Raise TooLong for a prompt of more tokens than the model has positions for."""
    length, limit = inputs["input_ids"].shape[-1], getattr(model.config, "max_position_embeddings", None)
    if limit and length > limit:
        raise TooLong(f"the prompt has {length:,} tokens and the model's context holds {limit:,}: shorten it.")


def serve(loaded: Loaded, name: str, place: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve a model under `name` at `place`; `ready` is called with the URL once the server answers.

    Ends with KeyboardInterrupt, at most GRACE seconds after the server is stopped.
    """
    host, port = place.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    config = uvicorn.Config(application(loaded, name), log_level="warning", timeout_graceful_shutdown=GRACE)
    _Server(config, lambda: ready(url)).run(sockets=[place])
    raise KeyboardInterrupt  # the signal that stopped the server, which uvicorn swallows


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on this machine; port 0 is any free one. Raises InputError where it cannot."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise InputError(
            f"host={host!r}: it is not known; name an address of this machine, such as 127.0.0.1."
        ) from error
    place = socket.socket(family, kind, protocol)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind(address)
        place.listen()
    except OSError as error:
        place.close()
        raise InputError(
            f"port={port}: it cannot be used on {host} ({error.strerror}); choose another --port or --host."
        ) from error
    return place


def name_of(source: str) -> str:
    """Return the model's name for clients: that of its folder or file, else the source as it is."""
    path = paths.local(source, "model").resolve()
    if path.is_file():
        return path.stem
    return path.name if path.is_dir() else source


def application(loaded: Loaded, name: str) -> FastAPI:
    """Return transformers' server around one model. A request that cannot be answered gets the reason as status 400."""
    manager, state = OneModel(loaded, name), OneState()
    app = build_server(
        manager,
        ChatCompletionHandler(manager, state),
        completion_handler=CompletionHandler(manager, state),
        response_handler=ResponseHandler(manager, state),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(manager, state),
        generation_state=state,
    )

    @app.exception_handler(ValueError)
    @app.exception_handler(TemplateError)
    async def _refused(request: Request, error: Exception) -> JSONResponse:
        code = "context_length_exceeded" if isinstance(error, TooLong) else None
        told = {"message": str(error), "type": "invalid_request_error", "param": None, "code": code}
        return JSONResponse({"error": told}, status_code=400)

    return app


class _Server(uvicorn.Server):
    """A server that reports when it is ready, and does not log the answers that are cut off when it is stopped."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logging.getLogger("uvicorn.error").disabled = True
        await super().shutdown(sockets)
