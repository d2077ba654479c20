"""Standard tasks by name, or from YAML files, through the Language Model Evaluation Harness."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slim.core import paths
from slim.core.errors import InputError, SlimError
from slim.core.hub import first_line
from slim.core.reporter import SILENT, Reporter
from slim.evaluation.metrics import POINTS, Columns, Metric, mean
from slim.models.load import Loaded

SHARES = ("acc", "acc_norm", "acc_mutual_info", "exact_match", "em", "f1", "brier_acc")
"""Metrics between 0 and 1, which are shown in points."""
PLAIN_FILTER = "none"
SUFFIXES = (".yaml", ".yml")
"""Of a file with a task."""


@dataclass(frozen=True)
class TaskScores:
    """Metrics of a task, and by metric the columns with the scores of its rows.  # (R,) each"""

    task: str
    version: str
    shots: int
    rows: int
    measures: tuple[Metric, ...]
    columns: Mapping[str, Columns]


class LmEvalTasks:
    """Tasks that are ready to run on any number of models.

    Raises InputError where the harness is not installed, for a name it does not know, and for a file without a task.
    """

    def __init__(
        self, names: Sequence[str], *, rows: int | None = None, shots: int | None = None, seed: int = 0
    ) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise InputError(
                f"tasks={','.join(names)}: lm-evaluation-harness is not installed; run pip install 'slim[lm-eval]'."
            ) from error
        self.rows, self.shots, self.seed = rows, shots, seed
        self.manager = _manager(TaskManager, not all(name.endswith(SUFFIXES) for name in names))
        self.specs = [self._spec(name) for name in names]

    def run(self, loaded: Loaded, batch_size: int = 4, reporter: Reporter = SILENT) -> list[TaskScores]:
        """Return the scores of a model on each task; the tasks of a group are listed one by one.

        Raises InputError for a task whose rows cannot be loaded, SlimError where it fails otherwise.
        """
        from lm_eval.evaluator import simple_evaluate

        with _quiet():
            tasks = self._tasks()
            lm = _wrapped(loaded, batch_size)
            found = []
            for place, (name, task) in enumerate(tasks.items()):
                reporter.progress(place, len(tasks), f"Running {name}")
                try:
                    results: Any = simple_evaluate(
                        lm,
                        tasks=[task],
                        task_manager=self.manager,
                        num_fewshot=self.shots,
                        limit=self.rows,
                        bootstrap_iters=0,
                        random_seed=self.seed,
                        numpy_random_seed=self.seed,
                        torch_random_seed=self.seed,
                        fewshot_random_seed=self.seed,
                    )
                except Exception as error:  # a task is arbitrary YAML, and may fail in any way
                    raise SlimError(
                        f"tasks={name}: it failed on {loaded.facts.source!r} ({first_line(error)})."
                    ) from error
                found.append(_scores(name, task, results))
        return found

    def _spec(self, name: str) -> str:
        if name in self.manager.task_index:
            return name
        if _is_file(name):
            return str(paths.local(name, "task"))
        near = [known for known in self.manager.all_tasks if name.lower() in known.lower()][:5]
        hint = f"; near are {', '.join(near)}" if near else ""
        raise InputError(f"tasks={name}: it is neither a task of the harness nor a YAML file{hint}.")

    def _tasks(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for spec in self.specs:
            try:
                found |= self.manager.load([spec])["tasks"]
            except Exception as error:  # no network, no such file, YAML of another kind
                raise InputError(
                    f"tasks={spec}: it cannot be loaded ({first_line(error)}); correct it, or choose a task "
                    "whose rows are here."
                ) from error
        return found


def _wrapped(loaded: Loaded, batch_size: int) -> Any:
    """Return the harness's own class around a loaded model, without its progress bars."""
    from lm_eval.models.huggingface import HFLM

    lm: Any = HFLM  # its decorators hide its types
    model: Any = loaded.model
    made = lm(pretrained=model, tokenizer=loaded.tokenizer, batch_size=batch_size, device=str(model.device))
    for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(made, name, partial(getattr(made, name), disable_tqdm=True))
    return made


def _is_file(name: str) -> bool:
    path = paths.local(name, "task")
    return path.suffix in SUFFIXES and path.is_file()


@cache
def _manager(made_by: Any, own: bool) -> Any:
    """Return the harness's list of tasks; for its own ones thousands of files are read."""
    with _quiet():
        return made_by(include_defaults=own)


def version() -> str:
    """Return the harness's version."""
    from importlib.metadata import version as installed

    return installed("lm_eval")


def _scores(name: str, task: Any, results: Any) -> TaskScores:
    samples, better = results["samples"][name], results["higher_is_better"].get(name, {})
    aggregations = task.aggregation()
    measures, columns = [], {}
    for kind in dict.fromkeys(sample["filter"] for sample in samples):
        rows = sorted((one for one in samples if one["filter"] == kind), key=lambda one: one["doc_id"])
        for metric in dict.fromkeys(metric for row in rows for metric in row["metrics"]):
            if not all(metric in row for row in rows):
                continue
            own = metric if kind == PLAIN_FILTER else f"{metric}, {kind}"
            items = [row[metric] for row in rows]
            measure = _measure(own, metric, items, aggregations.get(metric), bool(better.get(metric, True)))
            measures.append(measure)
            columns[own] = {own: _column(items)}
    if not measures:
        raise SlimError(f"tasks={name}: its YAML names no metric; add a metric_list.")
    return TaskScores(
        task=name,
        version=str(results["versions"].get(name, "")),
        shots=int(results["n-shot"].get(name, 0) or 0),
        rows=len({sample["doc_id"] for sample in samples}),
        measures=tuple(measures),
        columns=columns,
    )


def _measure(own: str, metric: str, items: Sequence[Any], aggregate: Any, higher_is_better: bool) -> Metric:
    """Return a metric with the task's own aggregation over resampled rows; a mean is one matrix product."""
    share = metric in SHARES
    unit, digits = (POINTS, 1) if share else ("", 3)
    if aggregate is None or (_are_numbers(items) and aggregate.__name__ in ("mean", "nanmean")):
        return mean(own, own, unit, higher_is_better, digits)

    def figure(rows: Columns, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        drawn = (list(np.repeat(rows[own], times)) for times in counts)
        return np.array([(100.0 if share else 1.0) * float(aggregate(one)) for one in drawn])

    return Metric(own, own, unit, higher_is_better, figure, digits)


def _column(items: Sequence[Any]) -> NDArray[Any]:
    """Return the task's value for each row: a number, or an item that its aggregation takes.  # (R,)"""
    if _are_numbers(items):
        return np.array(items, dtype=np.float64)
    column = np.empty(len(items), dtype=object)
    for place, item in enumerate(items):  # assigning a slice would unpack tuples
        column[place] = item
    return column


def _are_numbers(items: Sequence[Any]) -> bool:
    return all(isinstance(item, int | float | np.number) for item in items)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the harness's log inside the block, as the reporter shows the progress."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
