#!/usr/bin/env bash
# Streamlit 1.67.0: the page that st.switch_page opens can stay empty for good.
#
# Guess: a fragment with `run_every` belongs to its page, and ends with it.
# Seen:  the browser goes on asking for the fragment until it knows of the new page. Where the server's words take
#        longer than the timer, such a request is answered after the new page's run. The fragment is not found, so
#        nothing is run, but the start of that run names the old page, and the browser clears everything for it. The
#        address is the new page's, the page is empty, no error is shown and nothing runs. The same page with
#        `get_script_run_ctx().fragment_storage.clear()` before the switch stays whole.
# Here:  0.6 s from server to browser, a timer of 0.2 s, a page that takes a second. Exits 0 while it is so.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install --quiet streamlit==1.67.0 playwright==1.65.2
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)
if [ -z "$browser" ]; then
  export PLAYWRIGHT_BROWSERS_PATH="$work/browsers"
  env/bin/playwright install chromium
fi

cat > app.py <<'PY'
import sys
import time

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx


@st.fragment(run_every=0.2)
def clock():
    st.caption("tick")


def first():
    st.title("First")
    if st.button("Go"):
        if "forget" in sys.argv:
            get_script_run_ctx().fragment_storage.clear()
        st.switch_page(second_page)
    clock()


def second():
    time.sleep(1)
    st.title("Second")


second_page = st.Page(second, title="Second", url_path="second")
st.navigation([st.Page(first, title="First", default=True), second_page]).run()
PY

cat > watch.py <<'PY'
import asyncio
import socket
import subprocess
import sys
import threading
import time

from playwright.sync_api import sync_playwright


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


async def relay(listen, target, delay):
    async def forward(reader, writer, wait):
        queue, loop = asyncio.Queue(), asyncio.get_running_loop()

        async def write():
            data = b"any"
            while data:
                due, data = await queue.get()
                await asyncio.sleep(max(0, due - loop.time()))
                writer.write(data)
            writer.close()

        task, data = asyncio.ensure_future(write()), b"any"
        while data:
            data = await reader.read(65536)
            queue.put_nowait((loop.time() + wait, data))
        await task

    async def meet(reader, writer):
        inward, outward = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(forward(reader, outward, 0), forward(inward, writer, delay), return_exceptions=True)

    async with await asyncio.start_server(meet, "127.0.0.1", listen) as server:
        await server.serve_forever()


def empty_pages(browser, times, *words):
    """How many of so many clicks end on an empty page."""
    port, near = free_port(), free_port()
    command = [sys.executable, "-m", "streamlit", "run", "app.py", "--server.headless", "true", "--server.port", str(port)]
    app = subprocess.Popen([*command, "--", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    threading.Thread(target=lambda: asyncio.run(relay(near, port, 0.6)), daemon=True).start()
    empty = 0
    try:
        time.sleep(6)
        for _ in range(times):
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{near}", timeout=60_000)
            page.get_by_role("button", name="Go").click(timeout=60_000)
            page.wait_for_url("**/second", timeout=60_000)
            page.wait_for_timeout(6_000)
            text = page.get_by_test_id("stMain").inner_text().strip()
            running = page.get_by_test_id("stStatusWidget").count()
            print(f"{' '.join(words) or 'as it is'}: {text!r}, {'running' if running else 'nothing runs'}")
            empty += not text and not running
            page.close()
    finally:
        app.kill()
    return empty


with sync_playwright() as playwright:
    path = sys.argv[1] if len(sys.argv) > 1 else None
    chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
    as_it_is, forgotten = empty_pages(chromium, 4), empty_pages(chromium, 4, "forget")
    print(f"empty pages: {as_it_is} of 4; with the fragments forgotten before the switch: {forgotten} of 4")
    sys.exit(0 if as_it_is and not forgotten else 1)
PY
env/bin/python watch.py ${browser:+"$browser"}
