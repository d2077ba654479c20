"""The verb that measures the quality and speed of checkpoints: evaluate."""

from typing import TYPE_CHECKING

from rich.table import Table

from slim.cli.options import command
from slim.cli.shared import AsJson, at_work, out, print_json
from slim.data.omissions import omitted
from slim.evaluation.request import EvaluateRequest

if TYPE_CHECKING:
    from slim.evaluation.record import EvaluationFacts


@command(EvaluateRequest)
def evaluate(request: EvaluateRequest, as_json: AsJson = False) -> None:
    from slim.evaluation import evaluate as stage

    done = at_work(request, stage.evaluate)
    facts = done.facts
    if as_json:
        found = facts.model_dump(mode="json", exclude={"models": {"__all__": {"model": {"shapes"}}}})
        for shown, one in zip(found["models"], facts.models, strict=True):
            shown["parameters"] = one.parameters
        print_json(found | {"path": str(done.path)})
        return
    if facts.measures:
        out.print(_quality(facts))
    for table in _speed(facts):
        out.print(table)
    if facts.dataset:
        out.print(f"{facts.dataset.rows} rows, {facts.dataset.tokens:,} tokens of {facts.dataset.source}.")
        out.print(f"Held out: {facts.held_out}.", soft_wrap=True)
    for one in facts.models:
        if one.truncated_answers:
            out.print(f"{one.name}: {one.truncated_answers} answers stopped at {facts.max_new_tokens} tokens.")
    for sentence in facts.ends:
        out.print(sentence, soft_wrap=True, markup=False)
    for note in (*(omitted(facts.dataset.omissions) if facts.dataset else ()), *facts.notes):
        out.print(f"Note: {note}.", markup=False, soft_wrap=True)
    out.print(f"Evaluation: {done.path}", soft_wrap=True)


def _quality(facts: "EvaluationFacts") -> Table:
    """A line for each metric and model: the figure, and its difference to the original's."""
    from slim.evaluation.record import in_words

    table = Table("metric", "better", "rows", "model", "figure", "difference to the original")
    table.title = "Quality, with 95% intervals over rows"
    for key, about in facts.measures.items():
        named = f"{about.task}: {about.title}" if about.task else about.title
        named += (f", {about.unit}" if about.unit else "") + about.beside_chance
        lead = [named, "more" if about.higher_is_better else "less"]
        for one in facts.models:
            if (score := one.scores.get(key)) is None:
                continue
            more = in_words(about, score.difference, sign=True) if score.difference else ""
            table.add_row(*lead, f"{about.rows}", one.name, in_words(about, score.figure), more)
            lead = ["", ""]
        table.add_section()
    return table


def _speed(facts: "EvaluationFacts") -> list[Table]:
    """Tables of the speed at each batch size, and of every model's size and memory."""
    found = []
    for place, pace in enumerate(facts.original.pace):
        table = Table("model", "prefill, tokens/s", "decoding, tokens/s", "first token, s", "KV cache, MB")
        table.title = f"Speed, {pace.rows} row{'s' if pace.rows > 1 else ''} at a time (times the original's)"
        for one in facts.models:
            mine = one.pace[place]
            table.add_row(
                one.name,
                *(timed.words(digits) for timed, digits in ((mine.prefill, 0), (mine.decode, 1))),
                mine.first_token.words(3),
                f"{mine.cache_bytes / 1e6:,.2f}",
            )
        found.append(table)
    if facts.original.footprint is not None:
        table = Table("model", "parameters", "file, MB", "peak memory, MB", "loading, s", title="Size")
        for one in facts.models:
            if (taken := one.footprint) is not None:
                sizes = (f"{size / 1e6:,.1f}" for size in (taken.file_bytes, taken.peak_bytes))
                table.add_row(one.name, f"{one.parameters:,}", *sizes, taken.load.words(2))
        found.append(table)
    return found
