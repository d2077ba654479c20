"""The Compare page in a real browser: a judgement asked of a real server and read, a blind vote, the playground."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from slim.judging import votes
from slim.judging.record import Judgment
from slim.judging.votes import key_of, pruned_is_a
from slim.pruning import checkpoint
from tests.judge_server import JudgeServer, Scripted, serving, shown, verdict
from tests.judging.test_judge import OLD_COMPARISON, OLD_KEYS, OLD_SUMMARY
from tests.pico import keeping, make_pico, plan_of, save_pico
from tests.visitor import Visitor, fill

pytestmark = pytest.mark.browser
ROWS = 24
EVIL = "<script>window.hit=1</script> <img src=x onerror='window.hit=1'> **bold** [link](http://evil.example)"
"""Text that a judge might send to a page."""


def strict(asked: dict[str, Any], count: int) -> Scripted:
    """By the question: always the first answer for every fourth, a refusal for every sixth, else the longer answer."""
    said = shown(asked)
    number = int(re.findall(r"\d+", said["question"])[0])
    if number % 4 == 0:
        return verdict("A", EVIL)
    if number % 6 == 1:
        return Scripted("I am sorry, I cannot judge this.")
    first, second = said["answer_A"], said["answer_B"]
    return verdict("tie" if first == second else "A" if (len(first), first) > (len(second), second) else "B", EVIL)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workspace with a checkpoint, and questions that were uploaded."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(folder / "workspace"))
        patch.setenv("OMP_NUM_THREADS", "1")
        for name in ("SLIM_JUDGE_KEY", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        facts = save_pico(make_pico("llama"), folder / "model").facts
        whole = tuple(range(6))
        checkpoint.prune(
            plan_of(facts, keeping((0, 1, 2), (), whole, whole)), folder / "workspace" / "checkpoints" / "small"
        )
        rows = [{"question": f"What is {row} + 1?", "answer": str(row + 1)} for row in range(ROWS)]
        uploads = folder / "workspace" / "uploads"
        uploads.mkdir(parents=True)
        (uploads / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield folder / "workspace"


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with serving(strict) as judge:
        yield judge


@pytest.fixture
def visitor(visitor: Visitor) -> Visitor:
    """At the page."""
    visitor.open("compare")
    return visitor


def choose(visitor: Visitor, name: str) -> None:
    """One of the segments of a control."""
    visitor.page.get_by_role("radio", name=name, exact=True).click()
    visitor.settle()


def write(visitor: Visitor, label: str, text: str) -> None:
    box = visitor.page.get_by_label(label, exact=True)
    box.fill(text)
    box.press("Enter")
    visitor.settle()


def pairs(page: Page) -> Locator:
    """The pairs in sight."""
    return page.locator(".slim-pair:has(.sides)")


def judged(workspace: Path) -> tuple[Path, Judgment]:
    (path,) = [file for file in (workspace / "judgements").glob("*.json") if ".votes" not in file.name]
    return path, Judgment.model_validate_json(path.read_bytes())


def open_verdicts(visitor: Visitor) -> None:
    choose(visitor, "Judge")
    expect(pairs(visitor.page).first).to_be_visible()


def test_a_judgement_from_the_page(visitor: Visitor, workspace: Path, server: JudgeServer) -> None:
    """Asked in the form, made by a job, and shown when it is done; the same file as the command's."""
    page = visitor.page
    choose(visitor, "Judge")
    expect(page.get_by_text("There is no judgement yet.")).to_be_visible()
    box = page.get_by_test_id("stSelectbox").filter(has_text="Task data").get_by_role("combobox")
    box.click()
    page.get_by_role("option", name="rows.jsonl", exact=True).click()
    visitor.settle()
    fill(visitor, "Rows", ROWS)
    fill(visitor, "Longest answer, tokens", 8)
    choose(visitor, "An endpoint")
    expect(page.get_by_text("neither is set")).to_be_visible()
    write(visitor, "Endpoint", f"{server.url}/chat/completions")
    fill(visitor, "Retries", 0)
    expect(page.get_by_text(f"{ROWS} pairs, {2 * ROWS} calls, at most")).to_be_visible()
    visitor.picture("compare-form")
    assert not server.asked
    page.get_by_role("button", name="Judge", exact=True).click()
    expect(pairs(page)).to_have_count(10, timeout=120_000)
    assert len(server.asked) == 2 * ROWS
    path, found = judged(workspace)
    raw = json.loads(path.read_bytes())
    assert list(raw)[: len(OLD_KEYS)] == OLD_KEYS
    assert set(raw["summary"]) == OLD_SUMMARY
    assert all(set(one) >= OLD_COMPARISON for one in raw["comparisons"])
    figures = found.figures
    expect(page.get_by_text(f"{figures.win} · {figures.loss} · {figures.tie}", exact=True)).to_be_visible()
    expect(page.get_by_text(f"{figures.flips} flips", exact=False)).to_be_visible()
    assert figures.flips
    assert figures.coverage < 1


def test_what_a_judge_says_is_text(visitor: Visitor, workspace: Path) -> None:
    """Both orders with their reasons, none of which became a script, a picture, bold or a link."""
    open_verdicts(visitor)
    visitor.settle()
    page = visitor.page
    expect(page.get_by_text("Original shown first:").first).to_be_visible()
    expect(page.get_by_text("Pruned shown first:").first).to_be_visible()
    expect(page.get_by_text(EVIL).first).to_be_visible()
    assert page.evaluate("window.hit") is None
    assert page.locator(".slim-pair :is(script, img, a, strong, input, style)").count() == 0
    assert page.locator(".slim-pair mark.original").count()
    assert page.locator(".slim-pair mark.pruned").count()
    visitor.picture("compare-verdicts")


def test_filter_search_and_pages(visitor: Visitor, workspace: Path) -> None:
    found = judged(workspace)[1]
    open_verdicts(visitor)
    page = visitor.page
    page.get_by_label("Page 3", exact=True).click()
    expect(page.get_by_text("Row 21 ·")).to_be_visible()
    expect(pairs(page)).to_have_count(ROWS - 20)
    choose(visitor, "Changed the verdict")
    expect(page.get_by_text(f"{found.figures.flips} of {ROWS} pairs.")).to_be_visible()
    for head in pairs(page).locator("h4").all_inner_texts():
        assert head.endswith("changed with the order")
    choose(visitor, "Any")
    page.get_by_role("button", name="No verdict", exact=True).click()
    expect(page.get_by_text(f"{found.summary.error} of {ROWS} pairs.")).to_be_visible()
    expect(page.get_by_text("Its answer: I am sorry").first).to_be_visible()
    page.get_by_role("button", name="No verdict", exact=True).click()
    write(visitor, "Search", "what is 17 + 1?")
    expect(pairs(page)).to_have_count(1)
    expect(pairs(page)).to_contain_text("What is 17 + 1?")


def test_a_blind_vote_and_the_agreement(visitor: Visitor, workspace: Path) -> None:
    """Nothing in the whole page tells whose answer is whose before the vote; afterwards the two are compared."""
    path, found = judged(workspace)
    before = path.read_bytes()
    open_verdicts(visitor)
    page = visitor.page
    choose(visitor, "Vote blind")
    for count, ballot in enumerate(("A is better", "B is better", "Tie")):
        expect(page.get_by_text("Answer A")).to_be_visible()
        visitor.settle()
        main = page.get_by_test_id("stMain").inner_html()
        for told in ("Pruned better", "Original better", "shown first", "Original ·", "Pruned ·", "win rate", EVIL[:8]):
            assert told not in main
        assert page.locator(".slim-pair :is([class*=pruned], [class*=original])").count() == 0
        text = pairs(page).inner_text()
        (one,) = [one for one in found.comparisons if one.question in text]
        answers = page.locator(".slim-pair .sides .text").all_text_contents()
        expected = [one.response2, one.response1] if pruned_is_a(found, one) else [one.response1, one.response2]
        assert [answer.strip() for answer in answers] == [said.strip() or "(empty)" for said in expected]
        if not count:
            visitor.picture("compare-vote")
        page.get_by_role("button", name=ballot, exact=True).click()
        expect(page.get_by_text("shown first").first).to_be_visible()
        expect(page.get_by_text(re.compile("A was the (original|pruned model)"))).to_be_visible()
        kept = json.loads(path.with_name(f"{path.stem}.votes.json").read_bytes())["votes"][key_of(one)]
        meant = {"A is better": pruned_is_a(found, one), "B is better": not pruned_is_a(found, one)}
        wanted = "tie" if ballot == "Tie" else "pruned_model" if meant[ballot] else "original_model"
        assert (kept["choice"], kept["blind"]) == (wanted, True)
        page.get_by_role("button", name="Next pair").click()
    page.reload()
    open_again = page.get_by_role("radio", name="Agreement", exact=True)
    open_again.click()
    expect(page.get_by_text("You and the judge agree")).to_be_visible()
    expect(page.get_by_text("Too few votes for a conclusion")).to_be_visible()
    assert path.read_bytes() == before


def test_the_files(visitor: Visitor, workspace: Path) -> None:
    """The judgement as it lies in the workspace, and a line for each pair."""
    path, found = judged(workspace)
    votes.cast(path, found.comparisons[0], "tie", pruned_is_a=True)
    open_verdicts(visitor)
    page = visitor.page
    with page.expect_download() as started:
        page.get_by_role("button", name="Judgement as JSON").click()
    assert started.value.suggested_filename == path.name
    assert Path(started.value.path()).read_bytes() == path.read_bytes()
    with page.expect_download() as started:
        page.get_by_role("button", name="Pairs as CSV").click()
    with Path(started.value.path()).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["question"] for row in rows] == [one.question for one in found.comparisons]
    assert rows[0]["vote"] == "tie"


def test_the_playground_answers(visitor: Visitor) -> None:
    """Both models answer, each with its pace."""
    page = visitor.page
    visitor.page.get_by_label("Prompt", exact=True).fill("The harbour")
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    visitor.settle()
    page.get_by_role("button", name="Answer with both").click()
    expect(page.get_by_text(re.compile(r"\d+ tokens · [\d.]+ tokens/s"))).to_have_count(2)


def test_it_fits(visitor: Visitor) -> None:
    """Nothing is wider than the window; pictures to look at."""
    open_verdicts(visitor)
    for part in ("Verdicts", "Vote blind", "Agreement"):
        choose(visitor, part)
        for look in visitor.looks():
            visitor.picture(f"compare-{part.split()[0].lower()}-{look}")
