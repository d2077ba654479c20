"""The figures of a recovery show what its record holds."""

from typing import Any

import pytest

from slim.pruning.history import CurvePoint, Quality, RecoveryStep, TriedAnswers
from slim.recovery.charts import changes, curve, in_words

CURVE = (
    CurvePoint(step=0, validation=1.5, kl=0.5),
    CurvePoint(step=4, training=1.4, validation=1.2, kl=0.25),
)


def quality(kl: float, perplexity: float) -> Quality:
    return Quality(kl=kl, perplexity=perplexity, original=10.0, rows=9, predicted=700)


def step(method: str, before: Quality, after: Quality, applied: bool = True) -> RecoveryStep:
    return RecoveryStep.model_validate(
        {
            "method": method,
            "dataset": {
                "source": "rows",
                "split": "all",
                "kind": "qa",
                "rows": 60,
                "tokens": 900,
                "truncated_rows": 0,
            },
            "samples": 60,
            "seed": 0,
            "rows": {"train": 40},
            "settings": {},
            "before": before.model_dump(),
            "after": after.model_dump(),
            "applied": applied,
            "versions": {},
            "device": "cpu",
            "started": "now",
            "seconds": 1.0,
        }
    )


def traces(figure: Any) -> dict[tuple[str, str], tuple[list[float], list[float]]]:
    return {(trace.name, trace.xaxis or "x"): (list(trace.x), list(trace.y)) for trace in figure.data}


def test_the_curve_of_a_training() -> None:
    """Loss on the left, KL on the right, the best step ringed, and room for the steps to come."""
    figure: Any = curve(CURVE, 12)
    assert traces(figure) == {
        ("training", "x"): ([4], [1.4]),
        ("validation", "x"): ([0, 4], [1.5, 1.2]),
        ("validation", "x2"): ([0, 4], [0.5, 0.25]),
        ("best so far", "x"): ([4], [1.2]),
        ("best so far", "x2"): ([4], [0.25]),
    }
    assert figure.layout.xaxis.range[1] >= 12
    assert ("best", "x") in traces(curve(CURVE))


def test_before_the_first_step_nothing_is_best() -> None:
    assert {name for name, _ in traces(curve(CURVE[:1], 12))} == {"training", "validation"}


def test_what_each_step_gave() -> None:
    """From before to after in both panels; what was not applied is quiet, what became worse is alarming."""
    one, two, three = quality(0.4, 13.0), quality(0.2, 11.0), quality(0.3, 10.5)
    figure: Any = changes([step("repair", one, two), step("kd", two, two, applied=False), step("lora", two, three)])
    points = [(trace.xaxis, list(trace.x), list(trace.y)) for trace in figure.data]
    assert points == [
        ("x", [0.4, 0.2], [0, 0]),
        ("x2", pytest.approx([1.3, 1.1]), [0, 0]),
        ("x", [0.2, 0.2], [1, 1]),
        ("x2", pytest.approx([1.1, 1.1]), [1, 1]),
        ("x", [0.2, 0.3], [2, 2]),
        ("x2", pytest.approx([1.1, 1.05]), [2, 2]),
    ]
    good, _, quiet, _, bad, better = (trace.line.color for trace in figure.data)
    assert len({good, quiet, bad}) == 3
    assert better == good
    assert list(figure.layout.yaxis.ticktext) == ["1. Repair", "2. Knowledge distillation", "3. LoRA on the task"]
    assert "not applied" in figure.data[2].hovertemplate


def test_in_words() -> None:
    assert in_words(quality(0.4, 13.0), quality(0.2, 11.0)) == (
        "KL to the original 0.400 → 0.200 nats/token, perplexity 1.300× → 1.100× the original's"
    )
    one, other = (
        quality(kl, 11.0).model_copy(update={"answers": TriedAnswers(rows=16, stopped=stopped, max_new_tokens=24)})
        for kl, stopped in ((0.4, 3), (0.2, 12))
    )
    assert in_words(one, other).endswith("the original's, answers that ended by themselves 3 → 12 of 16")
    assert step("lora", one, other).stopped == "3 → 12 of 16"
    assert step("lora", quality(0.4, 13.0), other).stopped == ""
