"""Write a pruned model as a Hugging Face folder: stock where its layers are alike, else with one modeling file."""

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig, PreTrainedModel

from slim.core import workspace
from slim.core.errors import InputError
from slim.core.hub import snapshot
from slim.core.reporter import SILENT, Reporter
from slim.core.run_index import remember
from slim.models import modeling
from slim.models.architectures import Architecture
from slim.models.folder_check import read_folder
from slim.models.load import Loaded, load_model, locate, resolve_dtype
from slim.models.original import PLAN_FILE
from slim.models.source import CARRIED, GENERATION_CONFIG, WEIGHTS
from slim.planning.files import load_plan
from slim.planning.record import Plan
from slim.planning.slicing import MODELING_FILE
from slim.pruning.history import RECOVERY_FILE, Recovery
from slim.pruning.model_card import model_card, with_recovery
from slim.pruning.surgery import assembled, check_channels, cut
from slim.pruning.written import check_written

REWRITTEN = (f"{WEIGHTS}.index.json", GENERATION_CONFIG, "config.json")
"""Files of a checkpoint that describe its new weights, or name the tokens that it stops at."""
EARLIER_MODELING = ("892ec50d2e449574c80101348af9c18ea818c54d2cc74b4b94336d40e3692db9",)
"""SHA-256 of what slim/models/modeling.py was in versions whose checkpoints are still read."""
SHARD_BYTES = 5_000_000_000
"""Most bytes of weights in one file; more are split over several."""


def prune(plan: Plan, output: Path, reporter: Reporter = SILENT, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Execute a plan without repair, and return the folder of the checkpoint, `output`.

    Raises InputError for a plan that was made for another model than its source now names, for a model that is pruned
    already, and for an `output` that cannot be written.
    """
    check_channels(plan.keep)
    workspace.check_output(output, plan.after.bytes)
    reporter.progress(0, 3, "Loading the original")
    original = load_model(plan.model.source, device="cpu", dtype=plan.model.dtype, exact=True, reporter=reporter)
    reporter.progress(1, 3, "Removing weights")
    pruned = cut(original, plan)
    reporter.progress(2, 3, "Saving the checkpoint")
    write(output, pruned, plan, original=original, shard_bytes=shard_bytes)
    reporter.progress(3, 3, "Saved")
    return output


def write(
    output: Path,
    pruned: Loaded,
    plan: Plan,
    recovery: Recovery | None = None,
    *,
    original: Loaded | None = None,
    index: bool = True,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Save a pruned model as the new folder `output`, in its original's number formats, with its plan and recovery.

    Weights beyond `shard_bytes` are split over several files. The folder joins the workspace's index unless `index` is
    false. It appears only where it computes what the gated `original` does, or what `pruned` does where its weights
    were changed since the cut, and SlimError is raised otherwise.
    """
    model = _stored(pruned)
    with workspace.new_folder(output, plan.after.bytes) as folder:
        model.save_pretrained(folder, max_shard_size=shard_bytes)
        pruned.tokenizer.save_pretrained(folder)
        _finish_config(folder, model.config, pruned)
        (folder / PLAN_FILE).write_text(plan.model_dump_json(indent=1), encoding="utf-8")
        if recovery is not None and recovery.steps:
            (folder / RECOVERY_FILE).write_text(recovery.model_dump_json(indent=1), encoding="utf-8")
        (folder / "README.md").write_text(model_card(plan, recovery), encoding="utf-8")
        check_written(folder, pruned, plan.keep, original)
        recipe(folder)
    if index:
        remember(output, "checkpoint")


def _stored(pruned: Loaded) -> Any:
    """Return the model in the number formats of its original's files; itself where it runs in them."""
    model, facts = pruned.model, pruned.facts
    wanted = {name: resolve_dtype(facts.format_of(name)) for name, _ in model.named_parameters()}
    if all(parameter.dtype == wanted[name] for name, parameter in model.named_parameters()):
        return model
    state = {name: parameter.detach().to("cpu", wanted[name]) for name, parameter in model.named_parameters()}
    stored = assembled(type(model), copy.deepcopy(model.config), state, dict(model.named_buffers()))
    stored.generation_config = model.generation_config
    return stored


def _stock(config: PreTrainedConfig) -> str:
    """Return the name of transformers' class of the family."""
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return stock.__name__


def rewrite(
    source: str | Path,
    output: Path,
    state: Mapping[str, Tensor],
    recovery: Recovery,
    changed: PreTrainedModel | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Save the model `source` again as the new folder `output`, with other weights and the record of their recovery.

    `state` holds the weights that changed, by their names in the model, in any number format: they are stored in the
    one they had. Raises InputError where `source` is not a model or `output` cannot be written, and SlimError where
    what was written computes other logits than `changed`, the model with these weights in memory.
    """
    place = Path(locate(str(source)))
    folder = place if place.is_dir() else snapshot(str(place))
    stored = read_folder(str(source), folder)
    dtype = str(stored.dtype).removeprefix("torch.")
    loaded = load_model(str(source), device="cpu", dtype=dtype, exact=True)
    found = loaded.model.load_state_dict(dict(state), strict=False)
    if found.unexpected_keys:
        raise RuntimeError(f"{source} has no weights named {found.unexpected_keys[0]}")
    model = _stored(loaded)
    with workspace.new_folder(output, loaded.facts.bytes) as partial:
        model.save_pretrained(partial, max_shard_size=shard_bytes)
        for file in folder.iterdir():
            if file.suffix in CARRIED and file.name not in REWRITTEN and file.is_file():
                shutil.copyfile(file, partial / file.name)
        _finish_config(partial, model.config, loaded)
        (partial / RECOVERY_FILE).write_text(recovery.model_dump_json(indent=1), encoding="utf-8")
        (partial / "README.md").write_text(_card_of(folder, recovery), encoding="utf-8")
        check_written(partial, replace(loaded, model=model if changed is None else changed))
    remember(output, "checkpoint")


def _card_of(source: Path, recovery: Recovery) -> str:
    """Return the card of a checkpoint that was made from the one in the folder `source`."""
    if (source / PLAN_FILE).is_file():
        return model_card(load_plan(source / PLAN_FILE), recovery)
    readme = source / "README.md"
    card = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return with_recovery(card, source.name, recovery)


def recipe(folder: Path) -> Plan:
    """Return the plan that made a checkpoint. Raises InputError where it has none, or that of other weights."""
    stored = read_folder(str(folder), Path(locate(str(folder))))
    if not (folder / PLAN_FILE).is_file():
        raise InputError(
            f"checkpoint={str(folder)!r}: it has no {PLAN_FILE}, so it was not created by Slim; name one that was."
        )
    plan = load_plan(folder / PLAN_FILE)
    if stored.parameters != plan.after.parameters:
        raise InputError(f"checkpoint={str(folder)!r}: its {PLAN_FILE} is that of another model; prune again.")
    return plan


def modeling_text(stock: str, architecture: Architecture) -> str:
    """Return the modeling file of a checkpoint whose layers differ, on top of transformers' class `stock`."""
    return Path(modeling.__file__).read_text(encoding="utf-8") + _family_text(stock, architecture)


def wrote_modeling(text: str, stock: str, architecture: Architecture) -> bool:
    """Return whether `text` is such a file, from this version of Slim or an earlier one."""
    source = text.removesuffix(_family_text(stock, architecture))
    earlier = hashlib.sha256(source.encode()).hexdigest() in EARLIER_MODELING
    return text == modeling_text(stock, architecture) or (earlier and source != text)


def _family_text(stock: str, architecture: Architecture) -> str:
    family = json.dumps(architecture.for_modeling(), indent=4).replace("\n", "\n    ")
    return (
        f"\n\nfrom transformers import {stock}  # noqa: E402\n\n\n"
        f"class Slim{stock}(PerLayerAttentionMixin, {stock}):\n"
        f'    """{stock} with an attention of its own shape in each layer."""\n\n'
        f"    slim_family = {family}\n"
    )


def auto_map(stock: str) -> dict[str, str]:
    """Return the entry of such a checkpoint's config that names its class."""
    return {"AutoModelForCausalLM": f"{MODELING_FILE.removesuffix('.py')}.Slim{stock}"}


def _finish_config(folder: Path, config: PreTrainedConfig, stored: Loaded) -> None:
    """Let the config in a folder name the format of most weights; where layers differ, write the class that reads
    `per_layer_config`, and name it.
    """
    path = folder / "config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["dtype"] = stored.facts.dtype
    if config.is_heterogeneous:
        stock = _stock(config)
        (folder / MODELING_FILE).write_text(modeling_text(stock, stored.architecture), encoding="utf-8")
        raw |= {"architectures": [stock], "auto_map": auto_map(stock)}
    path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")
