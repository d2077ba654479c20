"""Who may see the dashboard. With a login set up nobody sees any page before they are logged in and let in."""

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.auth_util import is_authlib_installed
from streamlit.errors import StreamlitAuthError, StreamlitSecretNotFoundError

from slim.core.errors import InputError
from slim.core.network import DASHBOARD, is_local, warning

SHARED = "The workspace is shared: everyone who can log in sees all runs and uploads and may start, stop and delete."
REMEDY = "set up a login (docs/safety.md) or bind it to 127.0.0.1"


def secrets() -> Mapping[str, Any]:
    """Streamlit's secrets; nothing where there is no file. Raises InputError for a file that cannot be read.

    Streamlit takes such a file for none, which would open what its [auth] was to close.
    """
    try:
        return st.secrets.to_dict()
    except (StreamlitSecretNotFoundError, OSError, ValueError) as error:
        there = [path for path in st.get_option("secrets.files") if Path(path).exists()]
        if not there:
            return {}
        raise InputError(
            f"secrets: {', '.join(there)} cannot be read: correct it; nobody gets in until then."
        ) from error


def settings() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The sections [auth] and [slim] of the secrets. Raises InputError where they do not say who gets in."""
    found = secrets()
    auth, own = found.get("auth"), found.get("slim", {})
    if auth is not None and not (isinstance(auth, Mapping) and auth):
        raise InputError("secrets: auth is no section with settings: see docs/safety.md.")
    if not isinstance(own, Mapping) or own.keys() - {"allowed", "trust_unverified"}:
        raise InputError("secrets: section slim takes `allowed` and `trust_unverified` and nothing else.")
    allowed = own.get("allowed", [])
    if not isinstance(allowed, list) or not all(isinstance(name, str) and "@" in name for name in allowed):
        raise InputError('secrets: allowed must be a list as ["ann@example.com", "@example.org"].')
    if not isinstance(own.get("trust_unverified", False), bool):
        raise InputError("secrets: trust_unverified must be true or false.")
    if own and auth is None:
        raise InputError("secrets: section slim says who may log in, but there is no login: add the section auth.")
    return auth or {}, own


def needed() -> bool:
    """Whether a login is set up. Raises InputError as `settings` does."""
    return bool(settings()[0])


def is_shared() -> bool:
    """Whether others than the person at this machine may be at the pages. In doubt, they may."""
    try:
        return needed() or not is_local(st.get_option("server.address"))
    except InputError:
        return True


def refusal(person: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Why a person who logged in is not let in; None where they are."""
    if "allowed" not in own:
        return None
    address = str(person.get("email") or "").strip().lower()
    if "@" not in address:
        return "the login did not tell an e-mail address, and who may come in goes by it."
    verified = person.get("email_verified")
    if verified not in (True, "true") and not (verified is None and own.get("trust_unverified")):
        return f"the provider does not say that {address} is yours."
    names = {str(name).strip().lower() for name in own["allowed"]}
    if address in names or f"@{address.rpartition('@')[2]}" in names:
        return None
    return f"{address} is not on the list of those who may come in."


def admitted() -> bool:
    """Whether this visitor may see pages. Without a login everybody may who reaches the server."""
    try:
        auth, own = settings()
    except InputError:
        return False
    return not auth or (_logged_in() and refusal(st.user.to_dict(), own) is None)


def _logged_in() -> bool:
    return bool(st.user.to_dict().get("is_logged_in"))


def show_gate() -> None:
    """All that a visitor sees who is not let in: why, and the way in or out."""
    st.title("Slim")
    try:
        auth, own = settings()
    except InputError as error:
        st.error("This server is not set up rightly, so it lets nobody in.", icon=":material/lock:")
        _tell_owner(str(error))
        return
    if _logged_in():
        reason = refusal(st.user.to_dict(), own) or "try again."
        st.error("You are logged in, but may not come in. Ask who runs this server.", icon=":material/lock:")
        st.text(reason)
        st.button("Log out", icon=":material/logout:", on_click=st.logout)
        return
    st.markdown("Log in to go on.")
    if not is_authlib_installed():
        st.error("Logging in needs a package that is missing here.", icon=":material/lock:")
        _tell_owner("the login needs Authlib: run `pip install 'slim[auth]'` and start the app again.")
        return
    for name in _providers(auth):
        label = f"Log in with {name}" if name else "Log in"
        if st.button(label, type="primary", icon=":material/login:", key=f"login-{name}"):
            try:
                st.login(name) if name else st.login()
            except StreamlitAuthError as error:
                st.error("This server's login is not set up rightly.", icon=":material/lock:")
                _tell_owner(str(error))


def _providers(auth: Mapping[str, Any]) -> list[str | None]:
    """The names of the providers in [auth]; None is the one without a name."""
    named = [name for name, value in auth.items() if isinstance(value, Mapping) and name != "client_kwargs"]
    return [*([None] if "client_id" in auth or not named else []), *named]


def show_person() -> None:
    """The name of who is logged in, and the way out; nothing without a login."""
    if not needed():
        return
    person = st.user.to_dict()
    with st.popover(_plain(str(person.get("name") or person.get("email") or "Logged in")), icon=":material/person:"):
        st.text(str(person.get("email") or ""))
        st.caption(SHARED)
        st.button("Log out", icon=":material/logout:", on_click=st.logout)


def show_sharing() -> None:
    """On the first page: that the workspace is everybody's, or that the server is open without a login."""
    if needed():
        st.caption(SHARED)
        return
    address = st.get_option("server.address")
    if said := warning(address, DASHBOARD, REMEDY):
        st.warning(f"Open to others: {said}", icon=":material/lock_open:")


def warn_once() -> None:
    """Tells in the server's log, once, when it is open without a login."""
    try:
        said = None if needed() else warning(st.get_option("server.address"), DASHBOARD, REMEDY)
    except InputError as error:
        said = str(error)
    if said:
        _tell_owner(said)


@cache
def _tell_owner(text: str) -> None:
    """Into the server's log, each sentence once."""
    logging.getLogger("slim").warning("slim: %s", text)


def _plain(text: str) -> str:
    """Without what Markdown would take for a sign, for a button's label."""
    return "".join(sign if sign.isalnum() or sign in " .-@'" else " " for sign in text)[:60].strip() or "Logged in"
