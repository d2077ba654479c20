"""The parent watchdog: runs a module as `python -m` does, in a process that ends with its parent, however that ends.

`python -m slim.judging.parent_watch MODULE ARGUMENTS…` is started in a session of its own with a pipe as its standard
input. The system closes the other end of the pipe even where its holder was killed, and then the session is ended.
"""

import os
import runpy
import signal
import sys
import threading


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_watch, daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
