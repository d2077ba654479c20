"""The command `slim`, also as `python -m slim`."""

import sys

WINDOWS = "platform=win32: Slim runs on Linux and macOS; on Windows, install and start it inside WSL 2."


def main() -> None:
    """Run the command line. On Windows, print one sentence and exit with 2, before importing what Windows lacks."""
    if sys.platform == "win32":
        print(f"slim: {WINDOWS}", file=sys.stderr)
        sys.exit(2)

    from slim.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
