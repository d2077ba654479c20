"""The login: a real identity provider on this machine, the real app, and people in real browsers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect
from streamlit import config
from streamlit.testing.v1 import AppTest

from pages.views import login
from pages.views.evaluation_form import _check_code
from slim.core import paths
from slim.core.errors import InputError
from tests import APP
from tests.browser_setup import served
from tests.oidc_server import Provider, provider
from tests.visitor import PAGES, take_picture

ANN = {"sub": "1", "name": "Ann *Lee*", "email": "ann@example.com", "email_verified": True}
BEN = {"sub": "2", "name": "Ben", "email": "Ben@Example.org", "email_verified": True}
EVE = {"sub": "3", "name": "Eve", "email": "eve@evil.example", "email_verified": True}
ALLOWED = ["ann@example.com", "@example.org"]
HIDDEN = "a-run-that-nobody-else-may-see"


@pytest.mark.parametrize(
    ("person", "own", "words"),
    [
        (ANN, {}, None),
        (ANN, {"allowed": ALLOWED}, None),
        (BEN, {"allowed": ALLOWED}, None),
        (BEN, {"allowed": []}, "not on the list"),
        (EVE, {"allowed": ALLOWED}, "not on the list"),
        ({"sub": "4"}, {"allowed": ALLOWED}, "gave no e-mail address"),
        (ANN | {"email": "mallory@evil.example, ann@example.com"}, {"allowed": ALLOWED}, "not on the list"),
        (ANN | {"email": "ann@example.com@evil.example"}, {"allowed": ALLOWED}, "not on the list"),
        (ANN | {"email": "x@sub.example.org"}, {"allowed": ALLOWED}, "not on the list"),
        (ANN | {"email_verified": False}, {"allowed": ALLOWED}, "does not confirm that"),
        (ANN | {"email_verified": None}, {"allowed": ALLOWED}, "does not confirm that"),
        (ANN | {"email_verified": None}, {"allowed": ALLOWED, "trust_unverified": True}, None),
        (ANN | {"email_verified": False}, {"allowed": ALLOWED, "trust_unverified": True}, "does not confirm that"),
    ],
)
def test_who_is_let_in(person: dict[str, Any], own: dict[str, Any], words: str | None) -> None:
    """By the whole verified address or its whole domain; without a list whoever the provider lets log in."""
    said = login.refusal(person, own)
    assert said is None if words is None else words in str(said)


@pytest.fixture(scope="module")
def at_provider() -> Iterator[Provider]:
    with provider() as server:
        yield server


@pytest.fixture(scope="module")
def owner(at_provider: Provider, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The secrets of the server's owner."""
    file = tmp_path_factory.mktemp("shared") / "secrets.toml"
    file.write_text(at_provider.secrets_toml(allowed=ALLOWED))
    return file


@pytest.fixture(scope="module")
def app(owner: Path) -> Iterator[str]:
    """A dashboard with a login, a list of who may come in, and an upload in its workspace."""
    folder = owner.parent
    (folder / "workspace" / "uploads").mkdir(parents=True)
    (folder / "workspace" / "uploads" / f"{HIDDEN}.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    with served(folder / "workspace", STREAMLIT_SECRETS_FILES=str(owner)) as address:
        yield address


@pytest.fixture
def person(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    yield context
    context.close()


def gate(page: Page) -> None:
    """Nothing of the app is on the page but the way in."""
    expect(page.get_by_role("button", name="Log in", exact=True)).to_be_visible()
    text = page.locator("body").inner_text()
    assert not any(title in text for title in ("Calibrate", "Prune", "Compare", "workspace", HIDDEN))


def log_in(page: Page, at: Provider, who: dict[str, Any]) -> None:
    at.person = who
    page.get_by_role("button", name="Log in", exact=True).click()


@pytest.mark.browser
def test_nobody_sees_a_page_before_they_are_let_in(
    app: str, at_provider: Provider, person: BrowserContext, tmp_path: Path
) -> None:
    """On the address of any page, of a fresh server too; then who is on the list comes in, and who is not does not."""
    page = person.new_page()
    for name in ("prune", *PAGES, "frame", "no-such-page"):  # the first is what a fresh server is asked for
        page.goto(f"{app}/{name}")
        gate(page)
    assert at_provider.logins == 0
    page.goto(app)
    gate(page)
    take_picture(page, "login-gate")

    log_in(page, at_provider, EVE)
    expect(page.get_by_text("have no access")).to_be_visible()
    expect(page.get_by_text("eve@evil.example is not on the list")).to_be_visible()
    page.goto(f"{app}/calibrate")
    expect(page.get_by_text("have no access")).to_be_visible()
    assert "Task data" not in page.locator("body").inner_text()
    take_picture(page, "login-refused")
    page.get_by_role("button", name="Log out").click()
    gate(page)

    log_in(page, at_provider, ANN)
    expect(page.get_by_role("heading", level=1, name=PAGES[""])).to_be_visible()
    expect(page.get_by_text("The workspace is shared")).to_be_visible()
    take_picture(page, "login-home")
    for name, title in PAGES.items():
        page.goto(f"{app}/{name}")
        expect(page.get_by_role("heading", level=1, name=title)).to_be_visible()
    page.get_by_role("button", name="Ann Lee").click()
    expect(page.get_by_text("ann@example.com")).to_be_visible()
    page.wait_for_timeout(400)
    take_picture(page, "login-person")
    page.get_by_role("button", name="Log out").click()
    gate(page)
    page.goto(f"{app}/calibrate")
    gate(page)


@pytest.mark.browser
def test_each_person_has_their_own_selection(
    app: str,
    at_provider: Provider,
    person: BrowserContext,
    browser: Browser,
) -> None:
    """The input of one visitor is not on another's page, and neither leaves the folders of a shared server."""
    ann, other = person.new_page(), browser.new_context(viewport={"width": 1440, "height": 900})
    ben = other.new_page()
    for page, who in ((ann, ANN), (ben, BEN)):
        page.goto(app)
        log_in(page, at_provider, who)
        expect(page.get_by_role("heading", level=1, name=PAGES[""])).to_be_visible()
        page.get_by_role("link", name="Calibrate", exact=True).click()
        expect(page.get_by_role("heading", level=1, name="Calibrate")).to_be_visible()
    model = ann.get_by_role("combobox", name=re.compile("Model"))
    model.fill("/etc")
    model.press("Enter")
    expect(ann.get_by_test_id("stAlert")).to_contain_text("outside the folders")
    ben.reload()
    expect(ben.get_by_role("combobox", name=re.compile("Model"))).to_have_value("bundled:smollm2-135m")
    assert ben.get_by_test_id("stAlert").count() == 0
    other.close()


@pytest.mark.browser
def test_a_session_cookie_that_was_made_up_opens_nothing(app: str, person: BrowserContext) -> None:
    """It is signed, so one from elsewhere is as good as none."""
    person.add_cookies([{"name": "_streamlit_user", "value": "eyJpc19sb2dnZWRfaW4iOnRydWV9.x.y", "url": app}])
    page = person.new_page()
    page.goto(app)
    gate(page)


@pytest.mark.browser
def test_who_is_taken_off_the_list_is_out(app: str, at_provider: Provider, person: BrowserContext, owner: Path) -> None:
    """At their next click, without a restart."""
    page = person.new_page()
    page.goto(app)
    log_in(page, at_provider, ANN)
    expect(page.get_by_role("heading", level=1, name=PAGES[""])).to_be_visible()
    before = owner.read_text()
    owner.write_text(before.replace("ann@example.com", "other@example.com"))
    page.wait_for_timeout(3000)  # Streamlit looks at its secrets now and then
    page.get_by_role("link", name="Calibrate", exact=True).click()
    expect(page.get_by_text("have no access")).to_be_visible()
    assert "Task data" not in page.locator("body").inner_text()
    owner.write_text(before)


@pytest.mark.browser
def test_a_server_that_is_set_up_wrongly_lets_nobody_in(
    person: BrowserContext, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A mistake in the secrets closes the app; its owner reads the reason in the log, visitors do not."""
    (tmp_path / "secrets.toml").write_text("[auth\n")
    with served(tmp_path / "workspace", STREAMLIT_SECRETS_FILES=str(tmp_path / "secrets.toml")) as address:
        page = person.new_page()
        page.goto(f"{address}/calibrate")
        expect(page.get_by_text("lets nobody in")).to_be_visible()
        assert "Task data" not in page.locator("body").inner_text()
    assert "cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"slim": {"allowed": ["a@b.example"]}}, "there is no login"),
        ({"auth": {"client_id": "x"}, "slim": {"allowed": "a@b.example"}}, "must be a list"),
        ({"auth": {"client_id": "x"}, "slim": {"allowed": ["example.org"]}}, "must be a list"),
        ({"auth": {"client_id": "x"}, "slim": {"alowed": ["a@b.example"]}}, "section slim"),
        ({"auth": {"client_id": "x"}, "slim": {"trust_unverified": "no"}}, "true or false"),
        ({"auth": {"client_id": "x"}, "slim": 3}, "section slim"),
        ({"auth": {}}, "not a section"),
        ({"auth": "yes"}, "not a section"),
    ],
)
def test_a_mistake_in_the_secrets_opens_nothing(
    found: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote it wanted to close something; the folders are those of a shared dashboard, too."""
    monkeypatch.setattr(login, "secrets", lambda: found)
    with pytest.raises(InputError, match=words):
        login.settings()
    assert not login.admitted()
    assert login.is_shared()


@pytest.fixture
def open_to_all() -> Iterator[None]:
    """The app as if it listened at every address."""
    before = config.get_option("server.address")
    config.set_option("server.address", "0.0.0.0")
    yield
    config.set_option("server.address", before)


def test_an_open_dashboard_says_so(open_to_all: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On its first page; and it reads no more than a shared one, nor YAML that may run Python."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SLIM_FOLDERS", "")
    page = AppTest.from_file(APP, default_timeout=60).run()
    assert not page.exception
    assert "Open to others: it listens at 0.0.0.0" in page.warning[0].value
    with pytest.raises(InputError, match="outside the folders"):
        paths.local("~/rows.jsonl")
    with pytest.raises(InputError, match="may run Python of its own"):
        _check_code(["arc_easy", "mine.yaml"])
    _check_code(["arc_easy"])
