"""What a step of recovery will take and which rows it will have, before a model is loaded."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from slim.data import tasks
from slim.models.folder_check import read_folder
from slim.models.load import Loaded, locate, resolve_device
from slim.models.tokenizer import facts_at_hand, load_tokenizer
from slim.recovery.workbench import RecoveryContext, RowSettings, draw, original_of


@dataclass(frozen=True)
class Shell:
    """What stands for a model whose weights are not read: its config, and where it would be."""

    config: PreTrainedConfig
    device: torch.device


def preview(
    source: str, task: tasks.Task, settings: RowSettings, original: str | None = None
) -> RecoveryContext | None:
    """The bench of a step with shells for models, for what `workload` says of it; None where one is not unpacked yet.

    Raises InputError as `recover.bench` does.
    """
    teacher = original or original_of(source)
    one, other = (_shell(name, settings.device) for name in (source, teacher))
    if one is None or other is None:
        return None
    return RecoveryContext(source, one, other, draw(task, settings, source, one, other), settings)


def _shell(source: str, device: str) -> Loaded | None:
    facts = facts_at_hand(source)
    if facts is None:
        return None
    config = read_folder(source, Path(locate(source))).config
    shell: Any = Shell(config, resolve_device(device))
    return Loaded(shell, load_tokenizer(source), facts)
