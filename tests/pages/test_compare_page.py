"""The Compare page without a browser: what it asks of a judge, what it shows of a judgement, and the blind vote."""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from pages.views.verdicts_view import as_csv
from slim import jobs
from slim.core import workspace
from slim.core.run_index import remember, runs
from slim.data.tasks import choose, load_task
from slim.evaluation.settings import AnswerSettings
from slim.judging import votes
from slim.judging.cost import estimate
from slim.judging.endpoint import Endpoint
from slim.judging.judge import load_judgment
from slim.judging.record import Comparison, Judgment
from slim.judging.request import JudgeRequest
from slim.pruning import checkpoint
from tests.judgements import compared, judgement
from tests.pages.test_prune_page import opened, press
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.warm import Forker

KEY = "sk-very-secret-0123456789"
WHOLE = (tuple(range(6)),) * 4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a checkpoint of a pico model."""
    folder = tmp_path_factory.mktemp("compare-page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        facts = save_pico(make_pico("llama"), folder / "model").facts
        checkpoint.prune(plan_of(facts, keeping((0, 1, 2), *WHOLE[1:])), folder / "workspace" / "checkpoints" / "small")
        yield folder / "workspace"


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch, forker: Forker) -> Iterator[Path]:
    """The workspace as that of this process, without judgements, jobs and keys; workers are forked."""
    monkeypatch.setenv("SLIM_HOME", str(home))
    for name in ("SLIM_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    forker.ready()
    yield home
    for path in runs("judgement"):
        path.unlink()
        votes.file_of(path).unlink(missing_ok=True)
    for job in jobs.jobs():
        jobs.cancel(job.id)
        jobs.forget(job.id)


def judge_page() -> AppTest:
    page = opened("pages/compare.py", "Compare")
    return chosen(page, "compare-view", "Judge")


def chosen(page: AppTest, key: str, value: Any) -> AppTest:
    """A segmented control set to a value."""
    page.segmented_control(key=key).set_value(value).run()
    assert not page.exception
    return page


def typed(page: AppTest, key: str, value: str) -> AppTest:
    page.text_input(key=key).set_value(value).run()
    assert not page.exception
    return page


def words(page: AppTest) -> str:
    """All that is said on the page in text elements, without Markdown's escapes."""
    found = [*page.caption, *page.markdown, *page.warning, *page.error, *page.info, *page.success]
    return "\n".join(one.value for one in found).replace("\\", "")


def shown(page: AppTest) -> list[str]:
    """The pairs on the page, as HTML."""
    bodies = [element.proto.body for element in page.get("html")]  # type: ignore[reportAttributeAccessIssue]
    return [body for body in bodies if "slim-pair" in body and "<style" not in body and "class='sides'" in body]


def button(page: AppTest, label: str) -> Any:
    return next(one for one in page.button if one.label == label)


def some(pairs: int) -> list[Comparison]:
    """Pruned, original, flip, tie and failure in turn; the pruned model's answers are green."""
    verdicts = ["pp", "oo", "op", "tt", "xx"]
    return [
        compared(
            verdicts[place % 5],
            f"a red answer {place}",
            f"a green answer {place} {'more ' * place}",
            question=f"Question {place}?",
            reference=f"a truth {place}",
        )
        for place in range(pairs)
    ]


def kept(pairs: int = 23, **more: Any) -> tuple[Path, Judgment]:
    """A judgement in the workspace."""
    return keep(judgement(some(pairs), **more))


def keep(made: Judgment) -> tuple[Path, Judgment]:
    path = workspace.fresh_path("judgement", "judged")
    workspace.write_file(path, made.model_dump_json(indent=2))
    remember(path, "judgement")
    return path, made


def metrics(page: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in page.metric}


def test_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty workspace leads to Prune, and the judge's form cannot be sent."""
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "empty"))
    page = opened("pages/compare.py", "Compare")
    assert "There is no pruned model yet." in words(page)
    page = judge_page()
    assert "There is no judgement yet." in words(page)
    assert button(page, "Judge").disabled


def test_the_dataset_judges_where_nothing_is_chosen(here: Path) -> None:
    """No endpoint, no calls; the original is the one that was cut."""
    page = judge_page()
    assert "50 pairs, no calls: ROUGE-L F1 against the reference." in words(page)
    page.number_input(key="judge-samples").set_value(6).run()
    page.number_input(key="judge-length").set_value(8).run()
    press(page, "Judge")
    (job,) = jobs.jobs("judge")
    asked = JudgeRequest.of_job(job.arguments)
    assert asked.original == str(here.parent / "model")
    assert asked.pruned == str(here / "checkpoints" / "small")
    assert (asked.dataset, asked.split) == ("bundled:briefs", "test")
    assert (asked.samples, asked.max_new_tokens) == (6, 8)
    assert asked.measure == "auto"
    assert (asked.endpoint, asked.local_judge) == (None, None)


def test_an_untouched_form_asks_the_defaults_of_the_command(here: Path) -> None:
    """But the models and the rows, which the page shows and so writes down."""
    press(judge_page(), "Judge")
    (job,) = jobs.jobs("judge")
    shown = {"pruned", "original", "split", "template", "columns", "prompt"}
    assert JudgeRequest.of_job(job.arguments).changed().keys() == shown


def test_what_it_takes_is_what_the_command_says(here: Path) -> None:
    """Calls, tokens and price by the same estimate, and the settings in the job."""
    page = chosen(judge_page(), "judge-who", "An endpoint")
    assert button(page, "Judge").disabled
    typed(page, "judge-url", "http://127.0.0.1:9/v1/chat/completions")
    typed(page, "judge-model", "strict")
    page.number_input(key="judge-samples").set_value(10).run()
    page.number_input(key="judge-price-in").set_value(0.5).run()
    page.number_input(key="judge-price-out").set_value(2.0).run()
    page.number_input(key="judge-concurrency").set_value(4).run()
    page.text_area(key="judge-rubric").set_value("Prefer rhymes.").run()
    page.slider(key="judge-coverage").set_value(90).run()
    rows = choose(load_task("bundled:briefs", split="test"), 10, 0)
    asked = Endpoint(url="http://127.0.0.1:9/v1", model="strict")
    expected = estimate(rows, AnswerSettings(), asked, "Prefer rhymes.", (0.5, 2.0)).sentence()
    assert f"10 pairs, {expected}" in words(page)
    press(page, "Judge")
    (job,) = jobs.jobs("judge")
    found = JudgeRequest.of_job(job.arguments)
    assert (found.endpoint, found.judge_model) == ("http://127.0.0.1:9/v1", "strict")
    assert found.asking == {"concurrency": 4, "retries": 5, "max_tokens": 512}
    assert (found.rubric, found.min_coverage, found.prices) == ("Prefer rhymes.", 0.9, (0.5, 2.0))


def test_the_key_is_said_to_be_set_and_never_shown(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = chosen(judge_page(), "judge-who", "An endpoint")
    assert "neither is set" in words(page)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    page.run()
    assert "`OPENAI_API_KEY` is set" in words(page)
    typed(page, "judge-url", "http://127.0.0.1:9/v1")
    press(page, "Judge")
    (job,) = jobs.jobs("judge")
    assert KEY not in json.dumps(job.model_dump(mode="json"))
    assert not any(KEY in str(element) for element in page)


@pytest.mark.parametrize("url", [f"https://{KEY}@host/v1", f"https://host/v1?key={KEY}", "host/v1"])
def test_a_url_that_cannot_be_used_starts_nothing(here: Path, url: str) -> None:
    """Nor is a key in it repeated in the message."""
    page = chosen(judge_page(), "judge-who", "An endpoint")
    typed(page, "judge-url", url)
    assert len(page.error) == 1
    assert "the URL m" in page.error[0].value
    assert KEY not in page.error[0].value
    assert "Judge" not in [one.label for one in page.button]
    assert not jobs.jobs("judge")


def test_a_local_judge_is_asked_in_its_own_way(here: Path) -> None:
    page = chosen(judge_page(), "judge-who", "A local model, started for you")
    assert button(page, "Judge").disabled
    page.selectbox(key="judge-local").set_value("bundled:smollm2-135m").run()
    assert "too small to judge" in words(page)
    press(page, "Judge")
    (job,) = jobs.jobs("judge")
    asked = JudgeRequest.of_job(job.arguments)
    assert asked.local_judge == "bundled:smollm2-135m"
    assert asked.asking == {"retries": 5, "max_tokens": 512}


def test_the_figures_are_those_of_the_judgement(here: Path) -> None:
    _, made = kept(40, min_coverage=0.5)
    page = judge_page()
    figures = made.figures
    assert figures.win_rate is not None
    assert metrics(page) == {
        "Pruned win rate": f"{figures.win_rate.value:.1%}",
        "At equal length": f"{figures.length_controlled.value:.1%}" if figures.length_controlled else "unknown",
        "Wins · losses · ties": f"{figures.win} · {figures.loss} · {figures.tie}",
        "Coverage": "80.0%",
    }
    assert "Judged by strict at http://127.0.0.1:1/v1" in words(page)
    assert "More wins: neither, a tie" in words(page)


def test_below_the_coverage_nobody_wins(here: Path) -> None:
    kept(20, min_coverage=0.9)
    page = judge_page()
    said = words(page)
    assert "No winner is named: 80% of the pairs were judged, not 90% (4 × refusal)." in said
    assert "More wins" not in said


def test_ten_pairs_at_a_time(here: Path) -> None:
    """Both orders with their reasons, the reference, marks on the words that differ; pages hold the rest."""
    kept(23)
    page = judge_page()
    assert len(shown(page)) == 10
    first, last = shown(page)[0], shown(page)[4]
    assert "Row 1 · Pruned better" in first
    assert "<b>Original shown first: pruned better.</b> p it is" in first
    assert "<b>Pruned shown first: pruned better.</b> p it is" in first
    assert "a <mark class='original'>red</mark> answer 0" in first
    assert "No verdict" in last
    assert "Its answer: I cannot." in last
    page.session_state["compare-page"] = 3
    page.run()
    assert [one.split("<h4>")[1].split(" ·")[0] for one in shown(page)] == ["Row 21", "Row 22", "Row 23"]


def test_filters_and_search(here: Path) -> None:
    kept(23)
    page = judge_page()
    page.session_state["compare-page"] = 3
    page.run()
    chosen(page, "compare-flip", "Changed the verdict")
    assert "5 of 23 pairs." in words(page)
    assert all("changed with the order" in one for one in shown(page))
    chosen(page, "compare-flip", "Any")
    typed(page, "compare-search", "question 17?")
    (found,) = shown(page)
    assert "Row 18" in found
    typed(page, "compare-search", "nothing of the kind")
    assert "0 of 23 pairs." in words(page)


def test_what_the_reference_speaks_against_comes_first(here: Path) -> None:
    truth = "red green blue"
    verdicts = ["pp", "tt", "oo"]
    keep(judgement([compared(said, "nothing", truth, reference=truth) for said in verdicts]))
    page = judge_page()
    assert [row_of(one) for one in shown(page)] == [1, 2, 3]
    chosen(page, "compare-sort", "Disagreement with the reference")
    assert [row_of(one) for one in shown(page)] == [3, 2, 1]
    assert "1.00 against the reference" in shown(page)[0]


def row_of(pair: str) -> int:
    found = re.search(r"Row (\d+)", pair)
    assert found
    return int(found[1])


def test_a_blind_vote_tells_nothing_before(here: Path) -> None:
    """No element of the page says which answer is whose, or what the judge thought; after the vote all is said."""
    path, made = kept(12)
    page = chosen(judge_page(), "compare-look", "Vote blind")
    place = votes.queue(made)[0]
    one = made.comparisons[place]
    (pair,) = shown(page)
    assert row_of(pair) == place + 1
    assert "a truth" in pair
    assert not re.search(r"original|pruned|it is|refusal|characters", pair)
    assert not page.metric
    assert not re.search(r"pruned better|original better|of the pairs", words(page), re.IGNORECASE)
    is_a = votes.pruned_is_a(made, one)
    a_text = pair.split("Answer A")[1].split("Answer B")[0]
    assert ("green" in a_text) == is_a
    press(page, "A is better")
    (pair,) = shown(page)
    assert "Verdicts" in pair
    assert f"A was the **{'pruned model' if is_a else 'original'}**" in words(page)
    assert f"your vote: {'pruned' if is_a else 'original'} better" in pair
    assert votes.choices(made, votes.load_votes(path)) == {place: "pruned_model" if is_a else "original_model"}
    press(page, "Next pair")
    assert row_of(shown(page)[0]) == votes.queue(made)[1] + 1
    assert load_judgment(path) == made


def test_a_vote_is_changed(here: Path) -> None:
    """The later one counts, and is known not to be blind."""
    path, made = kept(3)
    page = chosen(judge_page(), "compare-look", "Vote blind")
    press(page, "Skip")
    page.button(key="again-tie").click().run()
    assert not page.exception
    (vote,) = votes.load_votes(path).votes.values()
    assert (vote.choice, vote.blind) == ("tie", False)
    chosen(page, "compare-look", "Agreement")
    assert made.comparisons[votes.queue(made)[0]].judgment != "error"
    assert "Changed after the models were named: 1." in words(page)


def test_agreement_on_the_page(here: Path) -> None:
    path, made = kept(12)
    page = chosen(judge_page(), "compare-look", "Agreement")
    assert "There is no vote" in words(page)
    for place, one in enumerate(made.comparisons[:5]):
        votes.cast(path, one, "skip" if place % 2 else "tie", votes.pruned_is_a(made, one))
    page.run()
    assert metrics(page)["You and the judge agree"] == "50.0%"  # pruned and a flip; the failure does not count
    assert "Too few votes for a conclusion: 2 so far" in words(page)
    assert "Skipped: 2." in words(page)


def test_every_pair_voted(here: Path) -> None:
    path, made = kept(2)
    for one in made.comparisons:
        votes.cast(path, one, "tie", True)
    page = chosen(judge_page(), "compare-look", "Vote blind")
    assert "Every pair has your vote." in words(page)


def test_a_judgement_that_cannot_be_read(here: Path) -> None:
    path, _ = kept(3)
    path.write_text('{"comparisons": []}')
    page = judge_page()
    assert len(page.error) == 1
    assert "cannot be read" in page.error[0].value


def test_the_table_as_a_file(here: Path) -> None:
    """The file of the CSV button is read back."""
    path, made = kept(7)
    votes.cast(path, made.comparisons[3], "tie", True)
    rows = list(csv.DictReader(io.StringIO(as_csv(made, votes.load_votes(path)))))
    assert [row["judgment"] for row in rows] == [one.judgment for one in made.comparisons]
    assert [row["vote"] for row in rows] == ["", "", "", "tie", "", "", ""]
