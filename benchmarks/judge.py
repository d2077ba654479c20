"""How close judging comes to the ideal time, and what answering in batches gains.

`python -m benchmarks.judge` prints both: 200 calls, 16 at a time, to a server in a process of its own that takes 100 ms
for each, beside the ideal of 13 rounds; and answers of the bundled model in batches beside one at a time. `--calls` and
`--answers` print one of them.
"""

import argparse
import asyncio
import json
import math
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.measure import machine, table
from slim.data import tasks
from slim.evaluation.answers import answer, prompts
from slim.evaluation.settings import AnswerSettings
from slim.evaluation.timing import interleaved
from slim.judging import client
from slim.judging.endpoint import Endpoint
from slim.judging.prompt import messages
from slim.models.load import load_model

CALLS, CONCURRENCY, LATENCY = 200, 16, 0.1
ROWS, TOKENS = 16, 64


async def serve() -> None:
    """Answers every request on a free port, which is printed, after LATENCY seconds."""
    message = {"role": "assistant", "content": json.dumps({"reason": "because", "verdict": "A"})}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    done = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice]}
    body = json.dumps(done).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(asked.split(b"content-length:")[1].split(b"\r\n")[0]))
                await asyncio.sleep(LATENCY)
                writer.write(head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(respond, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def calls(repeats: int) -> str:
    """The time of CALLS calls, each answer kept on disk, as a table."""
    ideal = math.ceil(CALLS / CONCURRENCY) * LATENCY
    command = [sys.executable, "-m", "benchmarks.judge", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
            seconds = [_once(url, repeat) for repeat in range(repeats)]
        finally:
            server.kill()
    rows = [[f"{taken:.2f} s", f"{ideal:.2f} s", f"{taken / ideal:.2f}×"] for taken in sorted(seconds)]
    return table([f"{CALLS} calls, {CONCURRENCY} at a time", "ideal", "ratio"], rows)


def _once(url: str, repeat: int) -> float:
    endpoint = Endpoint(url=url, model="judge", concurrency=CONCURRENCY)
    asked = [messages(f"question {repeat}/{place}", "one", "two", "original_first") for place in range(CALLS)]
    with client.open_reply_cache() as cache:
        began = time.perf_counter()
        replies = client.ask(endpoint, asked, cache)
        taken = time.perf_counter() - began
    if any(reply.failure or reply.known for reply in replies):
        raise SystemExit("some calls failed or were not made, so there is nothing to time")
    return taken


def answers(repeats: int) -> str:
    """Tokens a second of ROWS answers of the bundled model, by batch size, as a table; none stops before TOKENS."""
    loaded = load_model(device="cpu")
    examples = tasks.choose(tasks.load_task("bundled:triage", split="test"), ROWS, 0)
    rows = prompts(examples, loaded.tokenizer)

    def run(size: int) -> None:
        answer(loaded, rows, AnswerSettings(max_new_tokens=TOKENS, batch_size=size), ())

    seconds = interleaved({str(size): lambda size=size: run(size) for size in (1, 4, 8, ROWS)}, repeats)
    lines = [[size, f"{ROWS * TOKENS / taken:,.1f}", f"{seconds['1'] / taken:.2f}×"] for size, taken in seconds.items()]
    return table(["rows at a time", "tokens/s, prompts included", "to one at a time"], lines)


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--calls", action="store_true")
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    if given.serve:
        asyncio.run(serve())
        return
    print(machine())
    if given.answers or not given.calls:
        print(answers(given.repeats))
    if given.calls or not given.answers:
        with tempfile.TemporaryDirectory() as place:
            os.environ["SLIM_HOME"] = place  # no call is known there from an earlier run
            print(calls(given.repeats))


if __name__ == "__main__":
    main()
