"""The model card of a checkpoint or an adapter: the README that goes to the Hub with it."""

from pathlib import Path
from typing import Any

import slim
from slim.core.document import Document, Section
from slim.core.markdown import escaped, markdown, section_text
from slim.models import bundled
from slim.models.source import HUB_ID
from slim.planning.record import Plan
from slim.planning.slicing import MODELING_FILE
from slim.pruning.card_sections import (
    RECOVERY_TITLE,
    adapter_section,
    load_section,
    loss_blocks,
    recovery_section,
    removed_words,
    size_table,
)
from slim.pruning.history import Recovery

CLOSING = f"Made with Slim {slim.__version__}."


def front_matter(source: str | None) -> dict[str, Any]:
    """Return the metadata that the Hub reads from a card, for a checkpoint made from the model `source`.

    It names only a model that others can look up, and only a license that is known.
    """
    found: dict[str, Any] = {}
    if source == bundled.NAME:
        found |= {"base_model": bundled.HUB_NAME, "license": bundled.LICENSE}
    elif source is not None and HUB_ID.fullmatch(source):
        found["base_model"] = source
    return found | {"library_name": "transformers", "tags": ["pruned", "slim"]}


def model_card(plan: Plan, recovery: Recovery | None = None) -> str:
    """Return the README of a checkpoint: what was removed, its size and loss, its recovery, and how to load it."""
    sections = [Section("Size and loss", "gives", [size_table(plan), *loss_blocks(plan)])]
    if recovery is not None and recovery.steps:
        sections.append(recovery_section(recovery))
    return markdown(
        Document(
            title=f"{Path(plan.model.source).name}, pruned",
            results=[removed_words(plan)],
            sections=[*sections, load_section(plan)],
            front=front_matter(plan.model.source),
            closing=CLOSING,
        )
    )


def with_recovery(card: str, name: str, recovery: Recovery) -> str:
    """Return the card of a model that was not cut, its recovery at the end in place of an earlier one."""
    kept = (card or f"# {escaped(name)}\n").partition(f"\n## {RECOVERY_TITLE}\n")[0].rstrip() + "\n"
    return f"{kept}\n{section_text(recovery_section(recovery))}" if recovery.steps else kept


def adapter_card(base: str, recovery: Recovery) -> str:
    """Return the README of an adapter for the checkpoint `base`."""
    load = adapter_section((Path(base) / MODELING_FILE).is_file())
    return markdown(
        Document(
            title=f"An adapter for {Path(base).name}",
            results=[],
            sections=[*([recovery_section(recovery)] if recovery.steps else []), load],
            front={"library_name": "peft", "tags": ["pruned", "slim", "lora"]},
            closing=CLOSING,
        )
    )
