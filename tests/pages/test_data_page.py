"""The task data on the Calibrate page: guessed, changed, shown as the model reads it, and handed to the job."""

import html
import re
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from slim import jobs
from slim.calibration.facts import CalibrationSettings
from slim.calibration.request import CalibrateRequest
from slim.data import uploads
from slim.data.tasks import load_task
from slim.models import bundled
from tests import APP

ROWS = "frage,antwort,hint\n" + "".join(f"Was ist {row} + {row}?,Das ist {2 * row}.,add them\n" for row in range(20))


@pytest.fixture
def page() -> AppTest:
    """The page with its preview open. AppTest types no name of its own into a box, so the model is the bundled one."""
    app = AppTest.from_file(APP, default_timeout=120).run()
    app.switch_page("pages/calibrate.py").run()
    app.session_state["cal-preview"] = True
    return healthy(app.run())


def healthy(app: AppTest) -> AppTest:
    """No exception on it, and it is the page that is meant."""
    assert not app.exception
    assert [title.value for title in app.title] == ["Calibrate"]
    return app


def select(app: AppTest, label: str, value: Any) -> AppTest:
    """The box with this label set to a value."""
    (box,) = [box for box in app.selectbox if box.label == label]
    return healthy(box.set_value(value).run())


def boxes(app: AppTest) -> dict[str, Any]:
    """The value of every select box by its label."""
    return {box.label: box.value for box in app.selectbox}


def counts(app: AppTest) -> str:
    """The line of counts."""
    return next(caption.value for caption in app.caption if " rows · " in caption.value)


def captions(app: AppTest) -> str:
    """All small print."""
    return "\n".join(caption.value for caption in app.caption)


def preview(app: AppTest) -> str:
    """The first text of the preview, as HTML."""
    return app.get("html")[0].proto.body  # type: ignore[reportAttributeAccessIssue]


def upload(app: AppTest, content: str) -> AppTest:
    """A file that was uploaded, chosen as task data."""
    path = uploads.keep_upload("rows.csv", content.encode())
    return select(app.run(), "Task data", str(path))


def test_the_guess_is_chosen_and_everything_is_counted(page: AppTest) -> None:
    """Without a click: template, columns, wording, and what the longest row cuts off."""
    assert boxes(page) == {
        "Model": bundled.NAME,
        "Task data": "bundled:briefs",
        "Split": "train",
        "Template": "summarisation",
        "Column: text": "passage",
        "Column: summary": "summary",
    }
    assert page.text_area[0].value == "Summarise this passage in one or two sentences.\n\n{text}"
    assert counts(page).startswith("32 of 160 rows · 8,807 tokens · 9 rows are cut, 188 tokens lost · ")
    pale, dark, cut = re.findall(r"<span style='[^']*'>(.*?)</span>", preview(page), re.DOTALL)
    assert pale == "&lt;|im_start|&gt;"  # nothing predicts the first token
    assert "\nSummarise this passage in one or two sentences.\n" in dark
    assert cut == "&lt;|im_end|&gt;"
    assert re.search(r"Row \d+, 321 tokens, 1 of them cut", captions(page))
    assert "Rows read as summarisation: text = 'passage', summary = 'summary'; not read: 'id', 'subject'" in captions(
        page
    )


def test_columns_and_wording_can_be_changed(page: AppTest) -> None:
    """A file that no template fits is refused until they are; then the exact text is shown."""
    app = upload(page, ROWS)
    assert "no template fits them" in app.error[0].value
    app = select(app, "Template", "questions")
    assert "needs a column for 'question'" in app.error[0].value
    app = select(select(app, "Column: question", "frage"), "Column: answer", "antwort")
    assert not app.error
    app = healthy(app.text_area[0].set_value("{question} <{hint}>").run())
    assert re.search(r"Was ist (\d+) \+ \1\? &lt;add them&gt;&lt;\|im_end\|&gt;\n", preview(app))
    assert counts(app).startswith("20 of 20 rows · ")
    assert "none is cut" in counts(app)
    app = healthy(app.text_area[0].set_value("{nope}").run())
    assert "{nope} names no column" in app.error[0].value


def test_only_the_answer_counts_where_that_is_chosen(page: AppTest) -> None:
    """The answer is marked in the preview, and rows whose answer is cut away are counted."""
    app = select(page, "Task data", "bundled:triage")
    app = healthy(app.radio[0].set_value("answer").run())
    pale, dark, cut = re.findall(r"<span style='[^']*'>(.*?)</span>", preview(app), re.DOTALL)
    assert "Which desk should answer this customer's message?" in html.unescape(pale)
    assert dark.removesuffix("&lt;|im_end|&gt;") in {
        "access",
        "billing",
        "cancellation",
        "delivery",
        "fault",
        "question",
    }
    assert cut == ""
    (length,) = [box for box in app.number_input if box.label == "Longest row, tokens"]
    app = healthy(length.set_value(100).run())
    assert re.search(r"rows were left out: nothing of the answer is within 100 tokens \(the first is", captions(app))


def test_a_large_file_is_counted_by_its_first_rows(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing from it means reading it all, which waits for the job."""
    monkeypatch.setattr("slim.data.tasks.KEPT_BYTES", 400_000)
    app = upload(page, "question,answer\n" + "".join(f"{row}?,{row}\n" for row in range(5000)))
    assert counts(app).startswith("32 of about ")
    assert "by the first 32" in counts(app)


def test_what_was_chosen_goes_to_the_job(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything about the data and the settings by name."""
    started: list[CalibrateRequest] = []
    monkeypatch.setattr(jobs, "start", started.append)
    app = select(select(upload(page, ROWS), "Template", "maths"), "Column: problem", "frage")
    app = select(app, "Column: solution", "antwort")
    app = healthy(app.radio[0].set_value("answer").run())
    (button,) = [button for button in app.button if button.label == "Calibrate"]
    healthy(button.click().run())
    (request,) = started
    changed = request.changed()
    assert changed.pop("dataset").endswith(".csv")
    assert changed == {
        "template": "maths",
        "columns": {"problem": "frage", "solution": "antwort"},
        "prompt": "Solve this problem step by step.\n\n{problem}",
        "positions": "answer",
    }


def test_untouched_settings_are_those_of_the_command_line(page: AppTest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start without a change asks for the same as `slim calibrate`, whose rows the page names in full."""
    started: list[CalibrateRequest] = []
    monkeypatch.setattr(jobs, "start", started.append)
    (button,) = [button for button in page.button if button.label == "Calibrate"]
    healthy(button.click().run())
    (request,) = started
    assert request.part(CalibrationSettings) == CalibrationSettings()
    assert request.model == bundled.NAME
    assert load_task(request.data) == load_task("bundled:briefs")


def test_any_row_is_shown_with_what_is_not_read_of_it(page: AppTest) -> None:
    """By its number in the file, whether it is read or left out."""
    rows = ROWS + "Was ist das?,,nothing\n"
    app = upload(page, rows)
    app = select(app, "Template", "questions")
    app = select(select(app, "Column: question", "frage"), "Column: answer", "antwort")
    assert "1 row was left out: the column 'antwort' is empty (row 22)" in captions(app)
    (number,) = [box for box in app.number_input if box.label == "Row"]
    app = healthy(number.set_value(9).run())
    assert "Was ist 7 + 7?&lt;|im_end|&gt;" in preview(app)
    assert len([part for part in app.get("html") if "white-space:pre-wrap" in part.proto.body]) == 1  # type: ignore[reportAttributeAccessIssue]
    assert "Not read, column 'hint': add them" in captions(app)
    app = healthy(number.set_value(22).run())
    assert [box.value for box in app.warning] == ["Row 22 is left out: the column 'antwort' is empty."]
    app = healthy(number.set_value(99).run())
    assert "no such row; the nearest is row 22" in app.error[0].value
