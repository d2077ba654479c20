"""The original that a pruned folder names, for packages that know nothing of plans."""

import json

from slim.core import paths

PLAN_FILE = "slim_plan.json"
"""The plan in the folder of a checkpoint that Slim wrote."""


def named_original(source: str) -> str | None:
    """Return the model that the plan beside a model says it was cut from; None where there is no such plan."""
    file = paths.local(source, "model") / PLAN_FILE
    try:
        found = json.loads(file.read_bytes())["model"]["source"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return found if isinstance(found, str) else None
