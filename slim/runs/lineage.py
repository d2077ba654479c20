"""What every run of the workspace was made from: model → calibration → plan → checkpoint → recovered → … as a graph.

Records name what they were made from by folders, which move. So a run is known by what it holds as well: a plan names
the start of its calibration, a checkpoint holds its plan, a recovered one every step before its own.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from slim.core.errors import SlimError
from slim.core.run_index import Reference, references
from slim.core.workspace import Kind
from slim.runs.facts import RunFacts, Stage, run_facts
from slim.runs.files import files_of, size_of
from slim.runs.parents import Parents, Run


@dataclass(frozen=True)
class Node:
    """A run, or a model that runs were made of."""

    key: str
    stage: Stage
    name: str
    path: Path | None = None
    """None of a model."""
    kind: Kind | None = None
    tags: tuple[str, ...] = ()
    created: str = ""
    bytes: int = 0
    figures: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    """What it was made from, what matters most first."""
    notes: tuple[str, ...] = ()
    """What is not as it should be: a parent that is gone, a record that cannot be read."""


@dataclass(frozen=True)
class Lineage:
    """All models and runs by their keys, the newest run first."""

    nodes: Mapping[str, Node]

    @property
    def runs(self) -> list[Node]:
        """The runs without the models."""
        return [node for node in self.nodes.values() if node.path is not None]

    @property
    def edges(self) -> list[tuple[str, str]]:
        """Keys: what something was made from, and the run that was made."""
        return [(parent, node.key) for node in self.nodes.values() for parent in node.parents]

    def parents(self, key: str) -> list[Node]:
        """What a run was made from, what matters most first."""
        return [self.nodes[parent] for parent in self.nodes[key].parents]

    def children(self, key: str) -> list[Node]:
        """What was made from a run, in the order it was made."""
        found = [node for node in self.nodes.values() if key in node.parents]
        return sorted(found, key=lambda node: node.created)

    def ancestors(self, key: str) -> list[Node]:
        """All that a run was made from, the nearest first."""
        return self._reached(key, self.parents)

    def dependents(self, key: str) -> list[Node]:
        """All that was made from a run, the nearest first."""
        return self._reached(key, self.children)

    def part(self, keys: Iterable[str]) -> "Lineage":
        """The nodes with these keys. What lies between two of them is passed over, so that they stay joined."""
        kept = set(keys)
        nodes = {key: node for key, node in self.nodes.items() if key in kept}
        return Lineage({key: replace(node, parents=self._nearest(key, kept)) for key, node in nodes.items()})

    def _nearest(self, key: str, kept: set[str]) -> tuple[str, ...]:
        """The nearest ancestors that are kept, over those that are not."""
        found: dict[str, None] = {}
        seen, waiting = {key}, list(self.nodes[key].parents)
        for at in waiting:
            if at in kept and at != key:
                found[at] = None
            elif at not in seen:
                seen.add(at)
                waiting += self.nodes[at].parents
        return tuple(found)

    def _reached(self, key: str, following: Callable[[str], list[Node]]) -> list[Node]:
        """Breadth first, and each once: records that somebody edited may form a circle."""
        found = {key: self.nodes[key]}
        waiting = [key]
        for at in waiting:
            for node in following(at):
                if node.key not in found:
                    found[node.key] = node
                    waiting.append(node.key)
        return list(found.values())[1:]


def read_lineage() -> Lineage:
    """The runs that the workspace knows and that are there. One that cannot be read is in it, with the reason."""
    return lineage([_run(entry) for entry in references() if Path(entry.path).exists()])


def _run(entry: Reference) -> Run:
    try:
        return Run(entry, run_facts(entry.kind, Path(entry.path)))
    except (SlimError, OSError) as error:
        return Run(entry, None, str(error))


def lineage(runs: Iterable[Run]) -> Lineage:
    """The graph of runs by what their records say."""
    runs = list(runs)
    links = Parents(runs)
    made = [_node(run, *links.parents(run)) for run in runs]
    models = [
        Node(key=key, stage="model", name=model.name, figures=model.figures) for key, model in links.models.items()
    ]
    return Lineage({node.key: node for node in (*models, *made)})


def _node(run: Run, parents: tuple[str, ...], notes: tuple[str, ...]) -> Node:
    entry, path = run.reference, Path(run.reference.path)
    known = run.facts or RunFacts(entry.kind, {})
    return Node(
        key=entry.key,
        stage=known.stage,
        name=entry.name or (path.stem if path.suffix == ".json" else path.name),
        path=path,
        kind=entry.kind,
        tags=entry.tags,
        created=entry.created,
        bytes=sum(size_of(file) for file in files_of(entry.kind, path).values()),
        figures=known.figures,
        parents=parents,
        notes=notes,
    )
