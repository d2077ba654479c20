"""The process that forks workers, for tests whose jobs should not take seconds to start."""

import os
import subprocess

from slim.core import launch
from slim.jobs.forking import address, new_socket
from tests.waiting import wait_until


def warm_process(**settings: str) -> subprocess.Popen[bytes]:
    """Start it for this process's workspace, as the dashboard's server does; `settings` are of its environment."""
    environment = launch.environment(**{"SLIM_HOME": os.environ["SLIM_HOME"]} | settings)
    command = launch.module_command("slim.jobs.warm")
    return subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)


def listens() -> bool:
    """Return whether somebody answers at the workspace's address."""
    with new_socket() as line, address() as path:
        return line.connect_ex(path) == 0


class Forker:
    """One for the workspace that the tests of a module share."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def ready(self) -> int:
        """Return its number once it listens; it is started in a test, whose environment its workers must have."""
        if self.process is None:
            os.environ.pop("PYTEST_CURRENT_TEST", None)
            self.process = warm_process()
            wait_until(listens)
        return self.process.pid

    def end(self) -> None:
        """Kill it, and collect it."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
