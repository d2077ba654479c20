"""The report of a real pipeline: its figures are those of the records, and what anybody said in it stays text."""

import base64
import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from slim.calibration.record import load_calibration
from slim.core.errors import InputError
from slim.core.markdown import escaped
from slim.core.naming import endpoint_words, named, without_folders
from slim.evaluation.record import load_evaluation
from slim.judging import judge
from slim.judging.record import Comparison
from slim.models import bundled
from slim.planning.files import load_plan
from slim.pruning.checkpoint import recipe
from slim.pruning.history import load_recovery
from slim.pruning.model_card import model_card
from slim.runs.report.gather import gather
from slim.runs.report.samples import WORST, chosen
from slim.runs.report.write import text, write
from tests.commands import Run
from tests.hostile import EVIL, KEY, ODD, Made, pipeline
from tests.judge_server import by_length, serving
from tests.judgements import compared, judgement
from tests.pico import keeping, make_pico, plan_of

SECTIONS = {
    "calibration": ["recipe", "heads", "meaning", "again"],
    "plan": ["recipe", "heads", "plan", "meaning", "again"],
    "cut": ["recipe", "heads", "plan", "meaning", "load", "again"],
    "repaired": ["recipe", "heads", "plan", "recovery", "meaning", "load", "again"],
}
WHOLE = [
    *("recipe", "heads", "plan", "recovery", "evaluation", "verdicts", "answers", "meaning", "load", "again"),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report") / "someone"


@pytest.fixture(scope="module")
def made(home: Path) -> Iterator[Made]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIM_HOME", str(home / "workspace"))
        patch.setenv("SLIM_JUDGE_KEY", KEY)
        yield pipeline(home)


@pytest.fixture(autouse=True)
def here(made: Made, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workspace of the pipeline, and a secret that nothing may tell."""
    monkeypatch.setenv("SLIM_HOME", str(home / "workspace"))
    monkeypatch.setenv("SLIM_JUDGE_KEY", KEY)


class Parsed(HTMLParser):
    """The parts of a page as a browser finds them: its tags, the texts that are shown, and the scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "script":
            self.scripts[-1] += data
        elif self.inside != "style":
            self.shown.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.shown)

    @property
    def keys(self) -> list[str | None]:
        """The sections, in their order."""
        return [attrs.get("id") for tag, attrs in self.tags if tag == "section"]


def cells(told: str, first: str) -> list[list[str]]:
    """The lines of a Markdown card's tables that begin with `first`."""
    lines = [re.split(r" (?<!\\)\| ", line.strip("| ")) for line in told.splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0] == first]


def test_the_figures_are_those_of_the_records(made: Made) -> None:
    """Sizes, forecast, every step, every measure with its interval, and the verdicts, on the page and in the card."""
    shown, card = Parsed(text(made.tuned, "html")).text, text(made.tuned, "md")
    found, steps = recipe(made.tuned), load_recovery(made.tuned).steps
    facts, verdicts = load_evaluation(made.evaluation).facts, judge.load_judgment(made.judgement)
    assert cells(card, "Parameters")[0][1:3] == [f"{found.before.parameters:,}", f"{found.after.parameters:,}"]
    assert found.forecast is not None
    assert len(steps) == 2
    rate = verdicts.figures.win_rate
    assert rate is not None
    figures = [f"{found.after.parameters:,}", str(found.forecast), rate.words(3), facts.original.model.fingerprint]
    figures += [f"{step.before.kl:.4f} → {step.after.kl:.4f}" for step in steps]
    figures += [f"{step.before.ratio:.3f}× → {step.after.ratio:.3f}×" for step in steps]
    for one in facts.models:
        figures += [score.figure.words(facts.measures[name].digits) for name, score in one.scores.items()]
    pruned = facts.models[1].scores
    assert {"perplexity", "kl"} <= set(pruned)
    for figure in figures:
        assert figure in shown
        assert escaped(figure) in card
    summary = verdicts.summary
    for name, count in (
        ("pruned model wins", summary.pruned_model),
        ("tie", summary.tie),
        ("no verdict", summary.error),
    ):
        assert cells(card, name)[0][1] == str(count)
    change = pruned["perplexity"].difference
    assert change is not None
    for told in (shown, card.replace("\\", "")):
        assert f"perplexity {change.words(2, sign=True)}" in told
        assert f"{1 - found.after.parameters / found.before.parameters:.1%} fewer parameters than model" in told
        assert f"win rate over the original is {rate.value:.1%}" in told


def test_the_charts_hold_the_records_figures(made: Made) -> None:
    """A map of each metric with what the calibration measured."""
    page = Parsed(text(made.calibration, "html"))
    figures = json.loads(page.scripts[0])
    measured = load_calibration(made.calibration)
    titles = {figure["layout"]["title"]["text"]: figure for figure in figures}
    entropy = titles["Attention entropy (nats)"]["data"][0]["z"]
    values = base64.b64decode(entropy["bdata"])
    expected = measured.level("head")["entropy"].T
    assert entropy["shape"] == f"{expected.shape[0]}, {expected.shape[1]}"
    assert values == expected.astype("<f8").tobytes()
    places = [attrs for tag, attrs in page.tags if tag == "div" and attrs.get("class") == "chart"]
    assert [attrs["data-figure"] for attrs in places] == [str(place) for place in range(len(figures))]
    assert all(attrs["aria-label"] and attrs["role"] == "img" for attrs in places)


@pytest.mark.parametrize("name", Made._fields)
def test_what_belongs_to_a_run_and_no_more(made: Made, name: str) -> None:
    """Stages that are not there are left out; the last runs tell of the whole way to them."""
    run = getattr(made, name)
    page = Parsed(text(run, "html"))
    expected = SECTIONS.get(name, WHOLE)
    assert page.keys == expected
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a" and attrs.get("class") != "skip"]
    assert links == [f"#{key}" for key in expected]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    card = text(run, "md")
    assert sum(line.startswith("## ") for line in card.splitlines()) == len(expected)
    assert text(run, "md") == card


def test_what_anybody_said_is_text_on_the_page(made: Made) -> None:
    """Rows, reasons of a judge and names: no tag, link or handler comes of them, and no script ends early."""
    page = text(made.tuned, "html")
    parsed = Parsed(page)
    assert ODD in parsed.text
    assert EVIL in parsed.text
    assert "rows <b>.jsonl" in parsed.text
    assert not {"img", "b", "i", "iframe", "link", "form", "object"} & {
        tag for tag, attrs in parsed.tags if (tag, attrs) != ("b", {})
    }
    assert all(attrs["href"] and attrs["href"].startswith("#") for tag, attrs in parsed.tags if tag == "a")
    assert not [name for _, attrs in parsed.tags for name in attrs if name.startswith("on") or name == "src"]
    assert len(parsed.scripts) == 3
    assert page.count("</script") == 3
    json.loads(parsed.scripts[0])


def test_the_policy_lets_nothing_in(made: Made) -> None:
    """The scripts that may run are those of the file, by their hashes; nothing is fetched from anywhere."""
    from plotly.offline import get_plotlyjs

    page = Parsed(text(made.tuned, "html"))
    (policy,) = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in (policy or "").split(";"))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules
    hashes = [
        base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in (page.scripts[2], get_plotlyjs())
    ]
    assert rules["script-src"] == " ".join(f"'sha256-{one}'" for one in hashes)
    assert rules["img-src"] == "data:"


def test_what_anybody_said_is_text_in_the_card(made: Made) -> None:
    """Read as the Hub reads it there is no link, picture or HTML, and every line of a table has its cells."""
    card = text(made.tuned, "md")
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    assert yaml.safe_load(front) == {"library_name": "transformers", "tags": ["pruned", "slim"]}
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)
    inside = [child for token in tokens for child in (token.children or [])]
    kinds = {token.type for token in (*tokens, *inside)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline", "em_open", "s_open"}
    assert "table_open" in kinds
    for table in range(len(tokens)):
        if tokens[table].type == "table_open":
            assert len(_widths(tokens[table:])) == 1
    assert ODD in "\n".join("".join(child.content for child in token.children or []) for token in tokens)
    fences = [token.content for token in tokens if token.type == "fence"]
    shown = [
        judge.load_judgment(made.judgement).comparisons[place]
        for place, _, _ in chosen(judge.load_judgment(made.judgement))
    ]
    assert any(EVIL in pair.question for pair in shown)
    for pair in shown:
        assert f"{pair.question.rstrip()}\n" in fences


def _widths(tokens: list[Token]) -> set[int]:
    """How many cells the lines of the first table have."""
    end = next(place for place, token in enumerate(tokens) if token.type == "table_close")
    kinds = " ".join(token.type for token in tokens[:end])
    return {line.count("th_open") + line.count("td_open") for line in kinds.split("tr_open")[1:]}


@pytest.mark.parametrize("form", ["html", "md"])
@pytest.mark.parametrize("name", ["tuned", "calibration", "plan", "judgement"])
def test_nothing_of_this_machine_is_told(made: Made, home: Path, name: str, form: str) -> None:
    """No folder, no key: names are enough to do it again."""
    told = text(getattr(made, name), form)  # type: ignore[arg-type]
    assert KEY not in told
    for folder in (home, home.parent, Path.home()):
        assert str(folder) not in told
    assert "measured" in told


def test_names() -> None:
    assert named("/home/someone/models/small") == "small"
    assert named("owner/model") == "owner/model"
    assert named("bundled:briefs") == "bundled:briefs"
    said = without_folders(
        "calibrated on /home/someone/my rows/x.jsonl, at ~/a/b and C:\\users\\me\\c", ["/home/someone/my rows/x.jsonl"]
    )
    assert said == "calibrated on x.jsonl, at b and c"
    assert (
        without_folders("12 tokens/s, nats/token at http://127.0.0.1/v1")
        == "12 tokens/s, nats/token at http://127.0.0.1/v1"
    )
    assert endpoint_words(f"https://me:{KEY}@host:8000/v1?key={KEY}#{KEY}") == "https://host:8000/v1"


def test_the_commands_do_it_again(
    made: Made, home: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run as they stand, in another folder and workspace, they give the same plan, weights, figures and answers."""
    card = text(made.tuned, "md")
    (block,) = re.findall(r"```sh\n(.*?)\n```", card, re.DOTALL)
    for name in ("model", "rows <b>.jsonl"):
        (tmp_path / name).symlink_to(home / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "workspace"))
    url = judge.load_judgment(made.judgement).judge.endpoint or ""
    verbs = []
    with serving(by_length) as server:
        for line in block.splitlines():
            words = shlex.split(line)
            done = run(*(server.url if word == url else word for word in words[1:]))
            assert done.code == 0, (line, done.err)
            verbs.append(words[1])
    assert verbs == ["calibrate", "check", "plan", "prune", "repair", "finetune", "evaluate", "judge"]
    assert recipe(tmp_path / ODD).keep == recipe(made.tuned).keep
    again, once = load_recovery(tmp_path / ODD).steps, load_recovery(made.tuned).steps
    assert [step.after for step in again] == [step.after for step in once]
    facts, before = (load_evaluation(path).facts for path in (tmp_path / "scored", made.evaluation))
    assert facts.models[1].scores == before.models[1].scores
    pairs, others = (judge.load_judgment(path).comparisons for path in (tmp_path / "judged.json", made.judgement))
    assert [(one.question, one.response1, one.response2) for one in pairs] == [
        (one.question, one.response1, one.response2) for one in others
    ]


def test_the_pairs_are_the_worst_and_one_of_each_kind() -> None:
    """By how much the original is closer to the reference, then by their place; the first row is always there."""

    def lost(answer: str) -> Comparison:
        return compared("oo", "one two three four", answer, reference="one two three four")

    pairs = [
        compared("tt", "a", "a"),
        lost("one two three"),
        compared("pp", "a", "b"),
        lost("nothing"),
        lost("one two"),
        compared("xx", "a", "b"),
        lost("one"),
        compared("pp", "a", "b"),
    ]
    found = chosen(judgement(pairs))
    assert [place for place, _, _ in found] == [3, 6, 4, 2, 0, 5]
    assert [why for _, why, _ in found][:WORST] == ["one of the worst"] * WORST
    assert chosen(judgement(pairs)) == found
    assert [place for place, _, _ in chosen(judgement([lost("one")]))] == [0]


def test_answers_of_an_evaluation_where_nobody_judged(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a workspace that knows no judgement its own rows are shown."""
    monkeypatch.setenv("SLIM_HOME", str(tmp_path / "workspace"))
    page = Parsed(text(made.evaluation, "html"))
    assert "verdicts" not in page.keys
    assert "answers" in page.keys
    table = load_evaluation(made.evaluation).table
    mine = table[table["model"] == "model"]
    assert str(mine.iloc[0]["prompt"]) in page.text
    assert "Verdicts" not in page.text


def test_other_weights_are_another_model(made: Made, tmp_path: Path) -> None:
    """Measurements of a folder do not count for what lies there now, nor another calibration for a plan."""
    folder = tmp_path / "small"
    shutil.copytree(made.repaired, folder)
    assert gather(folder).evaluations == ()
    assert [name for name, _ in gather(made.tuned).evaluations] == ["scored"]
    moved = tmp_path / "scored"
    shutil.copytree(made.evaluation, moved)
    record = moved / "record.json"
    told = json.loads(record.read_text(encoding="utf-8"))
    told["models"][1]["model"]["source"] = str(folder)
    record.write_text(json.dumps(told), encoding="utf-8")
    found = gather(moved)
    assert found.subjects[0].plan is None
    assert "another model now" in found.notes[0]
    assert "plan" not in Parsed(text(moved, "html")).keys
    other = load_plan(made.plan).model_copy(update={"calibrated": "2020-01-01T00:00:00+00:00"})
    (tmp_path / "other.json").write_text(other.model_dump_json(), encoding="utf-8")
    assert gather(tmp_path / "other.json").calibrations == ()
    assert "is another one than the plan was made from" in text(tmp_path / "other.json", "md")


def test_metadata_names_what_others_can_look_up(made: Made, tmp_path: Path) -> None:
    """Figures on a dataset of the Hub are in the index, as they were measured; the bundled model has its licence."""
    moved = tmp_path / "scored"
    shutil.copytree(made.evaluation, moved)
    record = moved / "record.json"
    told = json.loads(record.read_text(encoding="utf-8"))
    told["dataset"] |= {"source": "owner/data", "revision": "abc"}
    record.write_text(json.dumps(told), encoding="utf-8")
    front = yaml.safe_load(text(moved, "md").split("---")[1])
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert result["dataset"] == {"name": "owner/data", "type": "owner/data", "split": "train", "revision": "abc"}
    scores = load_evaluation(moved).facts.models[1].scores
    assert {metric["type"]: metric["value"] for metric in result["metrics"]} == {
        name: score.figure.value for name, score in scores.items()
    }
    facts = make_pico("llama").facts.model_copy(update={"source": bundled.NAME})
    front = yaml.safe_load(model_card(plan_of(facts, keeping((), *(tuple(range(6)),) * 3))).split("---")[1])
    assert (front["base_model"], front["license"]) == (bundled.HUB_NAME, "apache-2.0")


def test_the_command(made: Made, tmp_path: Path, run: Run) -> None:
    """A page or a card by the file's name; a report is replaced, no other file is."""
    page, card = tmp_path / "page.html", tmp_path / "card.md"
    done = run("report", made.tuned, "--output", page)
    assert (done.code, page.read_text(encoding="utf-8")) == (0, text(made.tuned, "html"))
    assert f"Report: {page}" in done.out
    done = run("report", made.cut, "--output", page, "--json")
    assert json.loads(done.out) == {"path": str(page), "bytes": page.stat().st_size}
    assert page.read_text(encoding="utf-8") == text(made.cut, "html")
    assert run("report", made.tuned, "--output", card).code == 0
    readme = tmp_path / "README.md"
    shutil.copyfile(made.cut / "README.md", readme)
    assert run("report", made.cut, "--output", readme).code == 0
    assert readme.read_text(encoding="utf-8") == text(made.cut, "md")
    readme.write_text("mine", encoding="utf-8")
    for wrong, said in (
        ((made.cut, "--output", readme), "exists"),
        ((made.cut, "--output", tmp_path / "x.txt"), ".html or .md"),
    ):
        done = run("report", *wrong)
        assert (done.code, said in done.err) == (2, True)
    assert readme.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["nothing", "model", "empty", "rows <b>.jsonl"])
def test_what_is_no_run_is_refused(home: Path, tmp_path: Path, name: str) -> None:
    """A missing path, a model that Slim did not make, an empty folder and another file, each in one sentence."""
    (home / "empty").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=r"run=|plan"):
        write(home / name, tmp_path / "page.html")
    assert not list(tmp_path.glob("*.html"))
