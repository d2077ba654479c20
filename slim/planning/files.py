"""Plans as files, and two plans compared."""

from dataclasses import dataclass
from pathlib import Path

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.migrations import Raw, read_record
from slim.core.paths import is_file
from slim.core.records import why_invalid
from slim.core.run_index import remember
from slim.planning.record import Plan
from slim.planning.sizes import original_size, size_of

"""The plan that a checkpoint was cut by, within its folder."""


@dataclass(frozen=True)
class PlanDifference:
    """How `other` differs from `one`: (layer, head) that only one of them removes, and the layers that do."""

    one: Plan
    other: Plan
    only_one: tuple[tuple[int, int], ...]
    only_other: tuple[tuple[int, int], ...]
    layers_only_one: tuple[int, ...]
    layers_only_other: tuple[int, ...]

    @property
    def shared(self) -> int:
        """Heads that both remove."""
        return self.one.removed_heads - len(self.only_one)


def plan_difference(one: Plan, other: Plan) -> PlanDifference:
    """Two plans of the same model compared. Raises InputError when they are of two models."""
    if one.model.fingerprint != other.model.fingerprint:
        raise InputError(
            f"plan: these are plans of two models, {one.model.source!r} and {other.model.source!r}: "
            "compare plans of one."
        )
    removed = [
        {(layer, head) for layer in range(one.model.layers) for head in range(one.model.heads)}
        - {(layer, head) for layer, kept in enumerate(plan.keep) for head in kept.heads}
        for plan in (one, other)
    ]
    layers = [set(plan.removed_layers) for plan in (one, other)]
    return PlanDifference(
        one,
        other,
        tuple(sorted(removed[0] - removed[1])),
        tuple(sorted(removed[1] - removed[0])),
        tuple(sorted(layers[0] - layers[1])),
        tuple(sorted(layers[1] - layers[0])),
    )


def save_plan(plan: Plan, output: Path) -> Path:
    """Writes the plan to a new or existing .json file."""
    if output.is_dir():
        raise InputError(f"output {str(output)!r} is a folder: name a .json file for the plan.")
    workspace.write_file(output, plan.model_dump_json(indent=1))
    remember(output, "plan")
    return output


def load_plan(path: Path) -> Plan:
    """Read a saved plan. Raises InputError when `path` does not hold a valid one."""
    if not is_file(path):
        raise InputError(f"plan {str(path)!r} was not found: run `slim plan DIR --output {path}` first.")
    try:
        plan = read_record(Plan, path, f"plan {str(path)!r}")
    except (ValueError, OSError) as error:
        raise InputError(
            f"plan {str(path)!r} is not valid: {why_invalid(error)}. Make it again with `slim plan`."
        ) from error
    try:
        sizes = {"before": original_size(plan.model), "after": size_of(plan.model, plan.keep)}
    except (InputError, ValueError) as error:
        raise InputError(f"plan {str(path)!r} is not valid: {error}") from error
    for name, size in sizes.items():
        if getattr(plan, name) != size:
            raise InputError(
                f"plan {str(path)!r} is not valid: {name}: it is not the size of what `keep` keeps. "
                "Make it again with `slim plan`."
            )
    return plan


def _plan_1(raw: Raw) -> Raw:
    """Version 1 knew thresholds alone, and sizes without work and reading, which follow from what it keeps."""
    raw = dict(raw)
    weighed = {"threshold": raw.pop("threshold"), "weights": raw.pop("weights")}
    raw["reason"] = {"kind": "threshold", "scores": [], **weighed}
    unknown = {"flops_per_token": 1, "bytes_read_per_token": 1}
    sizes = {name: raw[name] | unknown for name in ("before", "after")}
    made = Plan.model_validate(_plan_2(raw | sizes))  # before anything is computed from what it says
    for name, size in (("before", original_size(made.model)), ("after", size_of(made.model, made.keep))):
        raw[name] = raw[name] | {field: getattr(size, field) for field in unknown}
    return raw | {"schema_version": 2}


def _plan_2(raw: Raw) -> Raw:
    """Version 2 had a list of heads for each layer, empty for a removed block, and null for a removed layer."""
    keep = [{"layer": False} if heads is None else {"heads": heads} for heads in raw["keep"]]
    return raw | {"keep": keep, "schema_version": 3}
