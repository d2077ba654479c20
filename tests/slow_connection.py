"""A connection on which a server's words come late, as over a long line or from a busy machine."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlparse

PIECE = 65_536
"""Bytes read at once."""


class Line:
    """A way to a server by an address of its own: what the server sends arrives `seconds` later."""

    def __init__(self, address: str) -> None:
        self.seconds = 0.0
        self.address = ""
        self._port = urlparse(address).port or 80

    async def open(self) -> None:
        server = await asyncio.start_server(self._meet, "127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _meet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        waiting = asyncio.Queue[tuple[float, bytes]]()
        await asyncio.gather(_carry(reader, back), self._hold(there, waiting), _deliver(waiting, writer))

    async def _hold(self, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]) -> None:
        loop, piece = asyncio.get_running_loop(), b"any"
        while piece:
            piece = await reader.read(PIECE)
            waiting.put_nowait((loop.time() + self.seconds, piece))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(PIECE):
        writer.write(piece)
        await writer.drain()
    writer.close()


async def _deliver(waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    loop, piece = asyncio.get_running_loop(), b"any"
    while piece:
        due, piece = await waiting.get()
        await asyncio.sleep(max(0.0, due - loop.time()))
        writer.write(piece)
        await writer.drain()
    writer.close()


async def _hang_up() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def line_to(address: str) -> Iterator[Line]:
    """A line to a server, which is fast until its `seconds` are set."""
    loop, line = asyncio.new_event_loop(), Line(address)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(line.open(), loop).result()
    try:
        yield line
    finally:
        asyncio.run_coroutine_threadsafe(_hang_up(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
