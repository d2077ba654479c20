"""Preview of a recovery step: its rows and its work, before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from slim.data import tasks
from slim.models.folder_check import read_folder
from slim.models.load import Loaded, locate, resolve_device
from slim.models.tokenizer import facts_at_hand, load_tokenizer
from slim.pruning import held_out
from slim.recovery.context import RecoveryContext, RowSettings, draw, original_of


@dataclass(frozen=True)
class Shell:
    """Stand-in for a model whose weights are not read: its config, and the device it would be on."""

    config: PreTrainedConfig
    device: torch.device


def preview(
    source: str, task: tasks.Task, settings: RowSettings, original: str | None = None
) -> RecoveryContext | None:
    """Return the context of a recovery step with shells for models, for the estimate of `workload`.

    Return None where a model is not unpacked yet. Raises InputError as `recovery_context` does.
    """
    plan, teacher = held_out.plan_of(source), original or original_of(source)
    one, other = (_shell(name, settings.device) for name in (source, teacher))
    if one is None or other is None:
        return None
    return RecoveryContext(one, other, draw(task, settings, plan, one, other), settings, plan)


def _shell(source: str, device: str) -> Loaded | None:
    facts = facts_at_hand(source)
    if facts is None:
        return None
    config = read_folder(source, Path(locate(source))).config
    shell: Any = Shell(config, resolve_device(device))
    return Loaded(shell, load_tokenizer(source), facts)
