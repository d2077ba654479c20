"""The versions that a record needs to be understood later."""

import platform

import slim


def versions() -> dict[str, str]:
    """Return the versions of Python and libraries, which a record needs to be understood later."""
    import torch
    import transformers

    return {
        "slim": slim.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
