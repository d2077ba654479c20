"""Plans for targets: valid in every layer however they are made, least in cost, and within the bytes of a format."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from slim.calibration.record import Calibration
from slim.core.errors import InputError
from slim.models.units import UNITS, head_counts
from slim.planning.budget import Planner, plan_by_budget
from slim.planning.files import load_plan, save_plan
from slim.planning.record import Served
from slim.planning.served_size import served_bytes
from slim.planning.shapes import best_valid_heads, valid_heads
from slim.planning.threshold import plan_by_threshold
from slim.planning.valid_choices import check_valid, valid_choices
from slim.recovery.prune import prune as execute
from slim.recovery.request import PruneRequest
from slim.targets.target import target
from tests.pico import make_pico, random_rows
from tests.reference import measured

NAMES = ("vllm:tp=2", "nemotron_nas", "onnxruntime_genai", "llama.cpp:q4_k_m", "sglang:tp=3", "transformers")


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Of a llama with 4 layers of 6 query heads in 2 KV groups."""
    return measured(make_pico("llama"), random_rows((20, 17, 24, 9, 15, 21)))


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_valid_there(calibration: Calibration, name: str) -> None:
    """By a threshold at every height, and by a budget."""
    facts, aim = calibration.facts.model, target(name)
    for threshold in np.linspace(0.5, 1.2, 15):
        made = plan_by_threshold(calibration, float(threshold), targets=[aim])
        check_valid(facts, made.keep, aim)
        assert [one.target for one in made.targets] == [name]
    made = plan_by_budget(calibration, {"heads": 0.8}, targets=[aim])
    check_valid(facts, made.keep, aim)
    assert sum(len(kept.heads) for kept in made.keep) <= 0.8 * facts.layers * facts.heads


@pytest.mark.parametrize("name", NAMES)
def test_a_budget_takes_the_cheapest_of_all_valid_plans(calibration: Calibration, name: str) -> None:
    """As if the costs of layers added up, beside every combination of valid shapes."""
    planner = Planner(calibration, "head", targets=[target(name)])
    keep = planner.additive({"heads": 0.7})
    heads = calibration.facts.model.layers * calibration.facts.model.heads
    least = np.inf
    for options in planner.options:
        for chosen in product(*(range(len(kept)) for kept in options.kept)):
            parts = [kept[at] for kept, at in zip(options.kept, chosen, strict=True)]
            if any(part.heads for part in parts) and sum(len(part.heads) for part in parts) <= 0.7 * heads:
                least = min(least, sum(alone[at] for alone, at in zip(options.alone, chosen, strict=True)))
    costs = [
        sum(options.alone[layer][options.kept[layer].index(kept)] for layer, kept in enumerate(keep))
        for options in planner.options
        if all(kept in options.kept[layer] for layer, kept in enumerate(keep))
    ]
    assert min(costs) == pytest.approx(least, rel=1e-6)


def test_a_threshold_without_rules_keeps_what_it_kept(calibration: Calibration) -> None:
    """The largest margin among all shapes is that of the plan without targets."""
    for threshold in np.linspace(0.1, 1.0, 10):
        free = plan_by_threshold(calibration, float(threshold))
        made = plan_by_threshold(calibration, float(threshold), targets=[target("transformers")])
        assert (made.keep, made.notes) == (free.keep, free.notes)
    rng, facts = np.random.default_rng(0), calibration.facts.model
    every = UNITS["head"].shapes(facts)
    for _ in range(300):
        costs, threshold = rng.integers(0, 9, facts.heads), int(rng.integers(0, 10))
        assert best_valid_heads(costs, threshold, facts.kv_heads, every, True)[1] == valid_heads(
            costs, threshold, facts.kv_heads, range(1, facts.group + 1)
        )


def test_the_heads_that_a_rule_costs_are_said(calibration: Calibration) -> None:
    """By layer, more and fewer."""
    free = plan_by_threshold(calibration, 0.6)
    made = plan_by_threshold(calibration, 0.6, targets=[target("onnxruntime_genai")])
    counts = [len({len(kept.heads) for kept in one.keep}) for one in (free, made)]
    assert counts[0] > counts[1] == 1
    said = made.notes[0]
    assert said.startswith("to be valid for its targets it keeps other heads: ")
    for layer, (one, other) in enumerate(zip(free.keep, made.keep, strict=True)):
        assert (len(one.heads) != len(other.heads)) == (str(layer) in said.partition(": ")[2].replace("layer", ""))


@pytest.mark.parametrize("kind", ["q4_k_m", "q4_0", "q6_k"])
@pytest.mark.parametrize("share", [0.99, 0.97, 0.95])
def test_bytes_are_those_of_the_format(calibration: Calibration, kind: str, share: float) -> None:
    """The limit holds for the file that is served, also where a format counts the layers that have attention."""
    aim, facts = target(f"llama.cpp:{kind}"), calibration.facts.model
    made = plan_by_budget(calibration, {"bytes": share}, targets=[aim])
    (served,) = made.targets
    assert served.after == served_bytes(facts, made.keep, aim) <= share * served.before


def test_one_shape_for_all_layers_removes_none_by_a_threshold(calibration: Calibration) -> None:
    """As without targets: the scores are those of heads, and a layer that goes takes its MLP along."""
    for threshold in (0.05, 0.3, 0.6):
        free = plan_by_threshold(calibration, threshold, uniform=True)
        made = plan_by_threshold(calibration, threshold, uniform=True, targets=[target("transformers")])
        assert made.keep == free.keep
        assert not made.removed_layers


def test_a_plan_says_what_it_is_valid_for(calibration: Calibration, tmp_path: Path) -> None:
    """In its file too; one without targets has the fields that it had."""
    aims = [target("vllm:tp=2"), target("llama.cpp:q6_k")]
    made = plan_by_threshold(calibration, 0.7, targets=aims)
    assert load_plan(save_plan(made, tmp_path / "plan.json")) == made
    assert "targets" not in plan_by_threshold(calibration, 0.7).model_dump()
    counts = [head_counts(kept, 3) for kept in made.keep if kept.heads]
    assert all(queries % 2 == 0 for queries, _ in counts)


def test_a_plan_that_its_targets_do_not_take_is_not_executed(calibration: Calibration, tmp_path: Path) -> None:
    """One that was changed by hand, before anything is loaded."""
    made = plan_by_threshold(calibration, 0.7)
    wrong = made.model_copy(update={"targets": (Served(target="onnxruntime_genai", before=2, after=1),)})
    file = save_plan(wrong, tmp_path / "plan.json")
    with pytest.raises(InputError, match=r"target='onnxruntime_genai': .*(lacks the attention|must be alike)"):
        execute(PruneRequest.asked(plan=file, output=tmp_path / "made"))
    assert not (tmp_path / "made").exists()


def test_what_cannot_be_satisfied_names_the_rule(calibration: Calibration) -> None:
    """And the nearest valid shapes, if there are any."""
    facts = calibration.facts.model
    with pytest.raises(InputError, match=r"vllm:tp=7: 7 devices need a multiple of 7 query heads.*: none\."):
        valid_choices(facts, "head", [target("vllm:tp=7")])
    with pytest.raises(InputError, match="Nearest valid shapes of a layer: 4 query and 2 KV heads"):
        valid_choices(facts, "block", [target("vllm:tp=4")])
