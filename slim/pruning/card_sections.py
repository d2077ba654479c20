"""Sections on a plan and on the recovery after it, shared by reports and by a checkpoint's own model card."""

from collections.abc import Sequence

from slim.core.document import Block, Code, Heading, Paragraph, Section, Table
from slim.core.naming import named, without_folders
from slim.models.original import PLAN_FILE
from slim.models.units import head_counts
from slim.planning.quantities import SIZES, SPEEDS, Quantity
from slim.planning.record import Plan
from slim.planning.slicing import MODELING_FILE, is_stock
from slim.pruning.history import RECOVERY_FILE, ROLES, Recovery, RecoveryStep

RECOVERY_TITLE = "Recovery"
ENDED = "answers that ended"
"""Column of the tried answers that the model ended by itself, before and after a training."""
LISTED = 24
"""Most heads of a layer that are listed one by one."""


def removed_words(plan: Plan, done: bool = True) -> str:
    """Return in a sentence what a plan removes, or removed where that is `done`, and the reason of the plan."""
    total, layers = plan.model.layers * plan.model.heads, plan.model.layers
    verb = "were removed" if done else "are to be removed"
    blocks, whole = plan.removed_blocks, plan.removed_layers
    return (
        f"{plan.removed_heads} of {total} attention heads {verb}, {len(blocks)} of {layers} attention blocks with all "
        f"of theirs{_which(blocks)}, and {len(whole)} whole layers{_which(whole)}. "
        f"Selected per {plan.unit}: {plan.reason}."
    )


def _which(layers: Sequence[int]) -> str:
    return f" ({', '.join(map(str, layers))})" if layers else ""


def size_table(plan: Plan) -> Table:
    """Return the sizes of the original and of the pruned model side by side."""
    return Table(
        ("", "original", "this model", "change"),
        [
            *(_size(plan, quantity) for quantity in SIZES),
            *(
                (f"{one.title}, at most", "1×", f"{one.times_faster(plan.before, plan.after):.2f}×", "")
                for one in SPEEDS
            ),
        ],
    )


def _size(plan: Plan, quantity: Quantity) -> tuple[str, str, str, str]:
    before, after = (getattr(size, quantity.field) for size in (plan.before, plan.after))
    change = f"{after / before - 1:+.1%}".replace("-", "−") if before else ""
    exact = [f"{value:,} {quantity.unit}".rstrip() for value in (before, after)]
    return quantity.title, exact[0], exact[1], change


def loss_blocks(plan: Plan) -> list[Block]:
    """Return the forecast loss of a plan, its forecast after repair, and its warnings."""
    found: list[Block] = []
    if plan.forecast:
        found.append(
            Paragraph(
                f"Forecast loss when it was planned: {plan.forecast} (KL to the original, on "
                f"{plan.forecast.sequences} rows of the held-out fold)."
            )
        )
    if plan.repaired:
        rows = f"on {plan.repaired.sequences} rows of the held-out fold"
        found.append(Paragraph(f"Forecast after repair: {plan.repaired}, {rows}."))
    return [*found, *(Paragraph(f"Warning: {note}.", "warning") for note in plan.notes)]


def layer_table(plan: Plan) -> Table:
    """Return a line for each layer that loses something; layers that are not listed stay whole."""
    whole, group = set(range(plan.model.heads)), plan.model.group
    lines = []
    for layer, kept in enumerate(plan.keep):
        gone = sorted(whole - set(kept.heads))
        if not kept.layer:
            lines.append((f"{layer}", "none", "none", "the whole layer, with its MLP"))
        elif not kept.attention:
            lines.append((f"{layer}", "none", "none", "the attention block"))
        elif gone:
            listed = ", ".join(map(str, gone[:LISTED])) + (" …" if len(gone) > LISTED else "")
            queries, keys = head_counts(kept, group)
            lines.append(
                (
                    f"{layer}",
                    f"{queries} of {plan.model.heads}",
                    f"{keys} of {plan.model.kv_heads}",
                    f"head{'s' if len(gone) > 1 else ''} {listed}",
                )
            )
    return Table(("layer", "query heads kept", "KV heads kept", "removed"), lines)


def steps_table(steps: Sequence[RecoveryStep]) -> Table:
    """Return a line for each step of a recovery."""
    tried = any(step.stopped for step in steps)
    return Table(
        ("step", "dataset", "KL", "perplexity", *([ENDED] if tried else []), "rows", "applied"),
        [
            (
                step.method,
                named(step.dataset.source),
                f"{step.before.kl:.4f} → {step.after.kl:.4f}",
                f"{step.before.ratio:.3f}× → {step.after.ratio:.3f}×",
                *([step.stopped] if tried else []),
                f"{step.after.rows}",
                "yes" if step.applied else "no",
            )
            for step in steps
        ],
    )


def steps_blocks(steps: Sequence[RecoveryStep]) -> list[Block]:
    """Return the steps of a recovery in a table, and how to read it."""
    return [
        Paragraph(
            "Measured before and after each step, on rows of the test split, which took no part in it: KL to the "
            "original in nats/token, and perplexity as a multiple of the original's."
        ),
        steps_table(steps),
    ]


def recovery_section(recovery: Recovery) -> Section:
    """Return a model card's section on a recovery that has steps."""
    record = Paragraph(f"The exact record is in {RECOVERY_FILE}.")
    return Section(RECOVERY_TITLE, "recovery", [*steps_blocks(recovery.steps), record])


def step_notes(step: RecoveryStep) -> list[str]:
    """Return the notes of a step, the sizes of its splits before them."""
    sizes = ", ".join(f"{step.rows.get(role, 0)} {role}" for role in ROLES)
    sources = (step.dataset.source, str(step.settings.get("original", "")))
    return [f"rows by split: {sizes}", *(without_folders(note, sources) for note in step.notes)]


def load_section(plan: Plan) -> Section:
    """Return the section on how to load a checkpoint."""
    stock = is_stock(plan.model, plan.keep)
    trust = "" if stock else ", trust_remote_code=True"
    how = (
        "This is a stock checkpoint: transformers' own class loads it, without any code of its own."
        if stock
        else f"Its layers differ, so the folder carries {MODELING_FILE}, a small class on top of transformers' own; "
        "without trust_remote_code=True the stock class refuses it."
    )
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("PATH"{trust})\n'
        'tokenizer = AutoTokenizer.from_pretrained("PATH")'
    )
    return Section(
        "Load it", "load", [Paragraph(how), Code(code, "python"), Paragraph(f"The exact recipe is in {PLAN_FILE}.")]
    )


def adapter_section(trust: bool) -> Section:
    """Return the section on how to load an adapter."""
    asked = ", trust_remote_code=True" if trust else ""
    code = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("BASE"{asked})\n'
        'model = PeftModel.from_pretrained(base, "PATH")'
    )
    return Section("Load it", "load", [Code(code, "python")])


def heading(name: str, several: bool) -> list[Block]:
    """Return a model's name as a heading where a document is about several."""
    return [Heading(name)] if several else []
