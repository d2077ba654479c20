"""What a report says of a plan and of the recovery after it: the parts that a checkpoint's own model card has too."""

from collections.abc import Callable, Sequence

from slim.core.document import Block, Code, Heading, Paragraph, Section, Table
from slim.core.naming import named, without_folders
from slim.planning.files import PLAN_FILE
from slim.planning.record import Plan, Size
from slim.planning.sizes import speedup
from slim.planning.slicing import MODELING_FILE, is_stock, kv_groups
from slim.pruning.history import RECOVERY_FILE, Recovery, RecoveryStep

RECOVERY_TITLE = "Recovery"
LISTED = 24
"""Heads of a layer that are named one by one."""


def removed_words(plan: Plan, done: bool = True) -> str:
    """In a sentence what goes, or went where that is `done`, and what decided."""
    total, layers = plan.model.layers * plan.model.heads, plan.model.layers
    verb, blocks = "were removed" if done else "go", len(plan.removed_blocks)
    return (
        f"{plan.removed_heads} of {total} attention heads {verb}, {blocks} of {layers} attention blocks with all of "
        f"theirs, and {len(plan.removed_layers)} whole layers. What decided, per {plan.unit}: {plan.reason}."
    )


def size_table(plan: Plan) -> Table:
    """The original beside what is left of it."""
    faster = speedup(plan.before, plan.after)
    return Table(
        ("", "original", "this model", "change"),
        [
            _size(plan, "Parameters", lambda size: size.parameters, "{:,}"),
            _size(plan, "Weights", lambda size: size.bytes / 1e6, "{:,.1f} MB"),
            _size(plan, "KV cache per token", lambda size: size.kv_bytes_per_token, "{:,} B"),
            _size(plan, "Work per token", lambda size: size.flops_per_token / 1e6, "{:,.1f} MFLOP"),
            ("Prefill, at most", "1×", f"{faster.prefill:.2f}×", ""),
            ("Decoding, at most", "1×", f"{faster.decode:.2f}×", ""),
        ],
    )


def _size(plan: Plan, name: str, of: Callable[[Size], float], form: str) -> tuple[str, str, str, str]:
    before, after = of(plan.before), of(plan.after)
    change = f"{after / before - 1:+.1%}".replace("-", "−") if before else ""
    return name, form.format(before), form.format(after), change


def loss_blocks(plan: Plan) -> list[Block]:
    """What the plan was forecast to cost, and what a person was warned of."""
    found: list[Block] = []
    if plan.forecast:
        found.append(
            Paragraph(
                f"Forecast loss when it was planned: {plan.forecast} (KL to the original, on "
                f"{plan.forecast.sequences} rows that did not choose the plan)."
            )
        )
    if plan.repaired:
        rows = f"on {plan.repaired.sequences} rows that did not choose the plan"
        found.append(Paragraph(f"Forecast once it is repaired: {plan.repaired}, {rows}."))
    return [*found, *(Paragraph(f"Warning: {note}.", "warning") for note in plan.notes)]


def layer_table(plan: Plan) -> Table:
    """The layers that lose something; those not named stay whole."""
    whole, group = set(range(plan.model.heads)), plan.model.group
    lines = []
    for layer, heads in enumerate(plan.keep):
        gone = sorted(whole - set(heads or ()))
        if heads is None:
            lines.append((f"{layer}", "none", "none", "the layer, MLP and all"))
        elif not heads:
            lines.append((f"{layer}", "none", "none", "the attention block"))
        elif gone:
            listed = ", ".join(map(str, gone[:LISTED])) + (" …" if len(gone) > LISTED else "")
            keys = len(kv_groups(heads, group))
            lines.append(
                (
                    f"{layer}",
                    f"{len(heads)} of {plan.model.heads}",
                    f"{keys} of {plan.model.kv_heads}",
                    f"head{'s' if len(gone) > 1 else ''} {listed}",
                )
            )
    return Table(("layer", "query heads that stay", "KV heads that stay", "what goes"), lines)


def steps_table(steps: Sequence[RecoveryStep]) -> Table:
    """A line for each step of a recovery."""
    return Table(
        ("step", "rows of", "KL", "perplexity", "rows", "applied"),
        [
            (
                step.method,
                named(step.dataset.source),
                f"{step.before.kl:.4f} → {step.after.kl:.4f}",
                f"{step.before.ratio:.3f}× → {step.after.ratio:.3f}×",
                f"{step.after.rows}",
                "yes" if step.applied else "no",
            )
            for step in steps
        ],
    )


def steps_blocks(steps: Sequence[RecoveryStep]) -> list[Block]:
    """The steps of a recovery in a table, and how to read it."""
    return [
        Paragraph(
            "Measured before and after each step, on rows that took no part in it: KL to the original in nats/token, "
            "perplexity as times the original's."
        ),
        steps_table(steps),
    ]


def recovery_section(recovery: Recovery) -> Section:
    """What a model card says of a recovery that has steps."""
    record = Paragraph(f"The exact record is in {RECOVERY_FILE}.")
    return Section(RECOVERY_TITLE, "recovery", [*steps_blocks(recovery.steps), record])


def step_notes(step: RecoveryStep) -> list[str]:
    """What is to be known of a step, and on which rows it stands."""
    roles = step.rows
    said = [
        f"{roles.get('learn', 0)} rows to learn from, {roles.get('choose', 0)} to choose by, "
        f"{roles.get('decide', 0)} to decide, {roles.get('report', 0)} told of"
    ]
    sources = (step.dataset.source, str(step.settings.get("original", "")))
    return [*said, *(without_folders(note, sources) for note in step.notes)]


def load_section(plan: Plan) -> Section:
    """How others load it."""
    stock = is_stock(plan.model, plan.keep)
    trust = "" if stock else ", trust_remote_code=True"
    how = (
        "This is a stock checkpoint: transformers' own class loads it, and no code comes with it."
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
    """How others load an adapter."""
    asked = ", trust_remote_code=True" if trust else ""
    code = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("BASE"{asked})\n'
        'model = PeftModel.from_pretrained(base, "PATH")'
    )
    return Section("Load it", "load", [Code(code, "python")])


def heading(name: str, several: bool) -> list[Block]:
    """A model's name where several are told of."""
    return [Heading(name)] if several else []
