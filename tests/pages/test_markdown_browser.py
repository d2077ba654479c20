"""Text that stays text in Streamlit's own Markdown, which adds colors, icons, emoji and formulas to the usual."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from slim.core.markdown import escaped
from tests.core.test_markdown import SIGNS
from tests.system.test_safety import HOSTILE, free_port, places, started

pytestmark = pytest.mark.browser
TEXTS = [*SIGNS, *(f"a {sign} b" for sign in SIGNS), HOSTILE.replace("https://", "https//")]
PAGE = """
import streamlit as st

st.markdown(":red[colors] $are$ **on** :smile:")
for number, text in enumerate({texts!r}):
    with st.container(key=f"text-{{number}}"):
        st.markdown(text)
        st.error(text)
        st.button(text, key=f"button-{{number}}")
"""


def test_streamlit_shows_text_as_it_is(browser: Browser, tmp_path: Path) -> None:
    """In a paragraph, a message and a label: the same words, and no element but the paragraph."""
    script, port = tmp_path / "page.py", free_port()
    script.write_text(PAGE.format(texts=[escaped(text) for text in TEXTS]), encoding="utf-8")
    flags = ("--server.headless", "true", "--server.address", "127.0.0.1", "--server.port", str(port))
    with started("streamlit", "run", str(script), *flags) as process:
        assert places(process, port) == {"127.0.0.1"}
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        texts = page.get_by_test_id("stMarkdownContainer")
        expect(texts).to_have_count(1 + 3 * len(TEXTS))
        expect(texts.first).to_contain_text("😄")  # the last of what is loaded when it is needed
        assert texts.first.locator("strong, .katex, .stMarkdownColoredText").count() == 3
        for number, text in enumerate(TEXTS):
            for element in page.locator(f".st-key-text-{number}").get_by_test_id("stMarkdownContainer").all():
                expect(element).to_have_text(text)
                assert element.locator("*").evaluate_all("all => all.map(one => one.tagName)") == ["P"], text
        page.close()
