"""Access to the dashboard. With a login set up no page is shown before the visitor is logged in and allowed."""

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
    """Streamlit's secrets, empty without a file. Raises InputError for a file that cannot be read.

    Streamlit takes such a file for a missing one, which would open the pages that its [auth] was to close.
    """
    try:
        return st.secrets.to_dict()
    except (StreamlitSecretNotFoundError, OSError, ValueError) as error:
        there = [path for path in st.get_option("secrets.files") if Path(path).exists()]
        if not there:
            return {}
        raise InputError(
            f"secrets: {', '.join(there)} cannot be read; correct it, as nobody can log in until then."
        ) from error


def settings() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The sections [auth] and [slim] of the secrets. Raises InputError where they are not valid."""
    found = secrets()
    auth, own = found.get("auth"), found.get("slim", {})
    if auth is not None and not (isinstance(auth, Mapping) and auth):
        raise InputError("secrets: auth is not a section with settings; see docs/safety.md.")
    if not isinstance(own, Mapping) or own.keys() - {"allowed", "trust_unverified"}:
        raise InputError("secrets: section slim has a setting other than `allowed` and `trust_unverified`; remove it.")
    allowed = own.get("allowed", [])
    if not isinstance(allowed, list) or not all(isinstance(name, str) and "@" in name for name in allowed):
        raise InputError('secrets: allowed must be a list such as ["ann@example.com", "@example.org"].')
    if not isinstance(own.get("trust_unverified", False), bool):
        raise InputError("secrets: trust_unverified must be true or false.")
    if own and auth is None:
        raise InputError("secrets: section slim lists who may log in, but there is no login; add the section auth.")
    return auth or {}, own


def needed() -> bool:
    """Return whether a login is set up. Raises InputError as `settings` does."""
    return bool(settings()[0])


def is_shared() -> bool:
    """Whether others than the user of this machine may be at the pages. In doubt, they may."""
    try:
        return needed() or not is_local(st.get_option("server.address"))
    except InputError:
        return True


def refusal(visitor: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Return why a visitor who logged in is not let in; None where they are."""
    if "allowed" not in own:
        return None
    address = str(visitor.get("email") or "").strip().lower()
    if "@" not in address:
        return "the login gave no e-mail address, by which visitors are let in."
    verified = visitor.get("email_verified")
    if verified not in (True, "true") and not (verified is None and own.get("trust_unverified")):
        return f"the provider does not confirm that {address} is yours."
    names = {str(name).strip().lower() for name in own["allowed"]}
    if address in names or f"@{address.rpartition('@')[2]}" in names:
        return None
    return f"{address} is not on the list of allowed addresses."


def admitted() -> bool:
    """Return whether this visitor may see pages. Without a login, everybody who reaches the server may."""
    try:
        auth, own = settings()
    except InputError:
        return False
    return not auth or (_logged_in() and refusal(st.user.to_dict(), own) is None)


def _logged_in() -> bool:
    return bool(st.user.to_dict().get("is_logged_in"))


def show_gate() -> None:
    """The page of a visitor who is not let in: the reason, and the way in or out."""
    st.title("Slim")
    try:
        auth, own = settings()
    except InputError as error:
        st.error("This server's login is misconfigured, so it lets nobody in.", icon=":material/lock:")
        _log(str(error))
        return
    if _logged_in():
        reason = refusal(st.user.to_dict(), own) or "try again."
        st.error("You are logged in, but have no access. Ask the owner of this server.", icon=":material/lock:")
        st.text(reason)
        st.button("Log out", icon=":material/logout:", on_click=st.logout)
        return
    st.markdown("Log in to go on.")
    if not is_authlib_installed():
        st.error("Logging in needs a package that is missing here.", icon=":material/lock:")
        _log("the login needs Authlib: run `pip install 'slim[auth]'` and start the app again.")
        return
    for name in _providers(auth):
        label = f"Log in with {name}" if name else "Log in"
        if st.button(label, type="primary", icon=":material/login:", key=f"login-{name}"):
            try:
                st.login(name) if name else st.login()
            except StreamlitAuthError as error:
                st.error("This server's login is misconfigured.", icon=":material/lock:")
                _log(str(error))


def _providers(auth: Mapping[str, Any]) -> list[str | None]:
    """The names of the providers in [auth]; None is the one without a name."""
    named = [name for name, value in auth.items() if isinstance(value, Mapping) and name != "client_kwargs"]
    return [*([None] if "client_id" in auth or not named else []), *named]


def show_user() -> None:
    """The name of who is logged in, and the way out; nothing without a login."""
    if not needed():
        return
    user = st.user.to_dict()
    with st.popover(_plain(str(user.get("name") or user.get("email") or "Logged in")), icon=":material/person:"):
        st.text(str(user.get("email") or ""))
        st.caption(SHARED)
        st.button("Log out", icon=":material/logout:", on_click=st.logout)


def show_sharing() -> None:
    """Show on the first page that the workspace is shared, or that the server is open without a login."""
    if needed():
        st.caption(SHARED)
        return
    address = st.get_option("server.address")
    if exposed := warning(address, DASHBOARD, REMEDY):
        st.warning(f"Open to others: {exposed}", icon=":material/lock_open:")


def warn_once() -> None:
    """Write into the server's log, once, that it is open without a login."""
    try:
        exposed = None if needed() else warning(st.get_option("server.address"), DASHBOARD, REMEDY)
    except InputError as error:
        exposed = str(error)
    if exposed:
        _log(exposed)


@cache
def _log(text: str) -> None:
    """Write a sentence into the server's log, once."""
    logging.getLogger("slim").warning("slim: %s", text)


def _plain(text: str) -> str:
    """The text without signs of Markdown, for a button's label."""
    return "".join(sign if sign.isalnum() or sign in " .-@'" else " " for sign in text)[:60].strip() or "Logged in"
