"""The provenance of all runs of the workspace as a graph: model → calibration → plan → checkpoint → recovered → …

Records name their sources by folders, which may move. So a run is identified by its content as well: a plan has the
start time of its calibration, a checkpoint contains its plan, a recovered one every step before its own.
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
    """A run, or a model that runs were made from."""

    key: str
    stage: Stage
    name: str
    path: Path | None = None
    """None for a model."""
    kind: Kind | None = None
    tags: tuple[str, ...] = ()
    created: str = ""
    bytes: int = 0
    figures: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    """Keys of the nodes it was made from, the most important first."""
    notes: tuple[str, ...] = ()
    """Problems: a parent that is missing, a record that cannot be read."""


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
        """Pairs of keys: a parent, and the run that was made from it."""
        return [(parent, node.key) for node in self.nodes.values() for parent in node.parents]

    def parents(self, key: str) -> list[Node]:
        """The nodes that a run was made from, the most important first."""
        return [self.nodes[parent] for parent in self.nodes[key].parents]

    def children(self, key: str) -> list[Node]:
        """The runs that were made from a node, in the order of their creation."""
        found = [node for node in self.nodes.values() if key in node.parents]
        return sorted(found, key=lambda node: node.created)

    def ancestors(self, key: str) -> list[Node]:
        """All nodes that a run was made from, the nearest first."""
        return self._reached(key, self.parents)

    def dependents(self, key: str) -> list[Node]:
        """All runs that were made from a node, the nearest first."""
        return self._reached(key, self.children)

    def part(self, keys: Iterable[str]) -> "Lineage":
        """The nodes with these keys; nodes between two of them are contracted, so that they stay connected."""
        kept = set(keys)
        nodes = {key: node for key, node in self.nodes.items() if key in kept}
        return Lineage({key: replace(node, parents=self._nearest(key, kept)) for key, node in nodes.items()})

    def _nearest(self, key: str, kept: set[str]) -> tuple[str, ...]:
        """The nearest ancestors among those that are kept."""
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
        """The reachable nodes, breadth first, each once: edited records may form a cycle."""
        found = {key: self.nodes[key]}
        waiting = [key]
        for at in waiting:
            for node in following(at):
                if node.key not in found:
                    found[node.key] = node
                    waiting.append(node.key)
        return list(found.values())[1:]


def read_lineage() -> Lineage:
    """The lineage of the workspace's existing runs. A run that cannot be read is included, with the reason."""
    return lineage([_run(entry) for entry in references() if Path(entry.path).exists()])


def _run(entry: Reference) -> Run:
    try:
        return Run(entry, run_facts(entry.kind, Path(entry.path)))
    except (SlimError, OSError) as error:
        return Run(entry, None, str(error))


def lineage(runs: Iterable[Run]) -> Lineage:
    """The graph of runs according to their records."""
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
