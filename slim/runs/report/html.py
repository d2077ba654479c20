"""A document as one HTML file that needs no network, with every text of a record escaped.

The charts' library is embedded, compressed. A content security policy in the file allows two scripts, by their hashes,
and no requests: a script that a text might smuggle in would not run.
"""

import base64
import functools
import gzip
import hashlib
import json
from importlib.resources import files
from itertools import groupby
from typing import Any

import jinja2
import plotly.io
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from slim.core.document import Chart, Document, Heading, Pair
from slim.judging.pair_html import named_sides, opinions, pair

FOLDER = "runs/report/assets"
CLEAR = "rgba(0,0,0,0)"


def html(document: Document) -> str:
    """The whole file. Charts are drawn when it is opened; without scripts its tables still have the figures."""
    figures: list[dict[str, Any]] = []
    sections = []
    for section in document.sections:
        level = 4 if any(isinstance(block, Heading) for block in section.blocks) else 3
        groups: list[tuple[str, Any]] = []
        for kind, blocks in groupby(section.blocks, key=lambda block: block.kind):
            if kind == Chart.kind:
                drawn = [block for block in blocks if isinstance(block, Chart)]
                groups.append((kind, list(enumerate(drawn, len(figures)))))
                figures += map(_figure, drawn)
            else:
                groups += [(kind, _pair(block, level) if isinstance(block, Pair) else block) for block in blocks]
        sections.append((section, groups))
    style, script = _asset("report.css"), _asset("report.js")
    allowed = [script, get_plotlyjs()] if figures else []
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, allowed)) or repr('none')}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return _template().render(
        document=document,
        sections=sections,
        figures=figures,
        policy=policy,
        style=Markup(style),  # noqa: S704  files of this package
        script=Markup(script),  # noqa: S704
        library=_packed() if figures else "",
    )


def _figure(block: Chart) -> dict[str, Any]:
    """A figure as the library reads it, on the page's own background."""
    figure = block.draw().update_layout(template="none", paper_bgcolor=CLEAR, plot_bgcolor=CLEAR)
    return json.loads(plotly.io.to_json(figure) or "{}")


def _pair(block: Pair, level: int) -> Markup:
    head = " · ".join(filter(None, (f"Row {block.place + 1}", block.why, block.verdict)))
    sides = named_sides(block.answers, block.cut, block.scores)
    told = pair(head, block.question, block.reference, sides, level) + opinions(block.opinions, level)
    return Markup(told)  # noqa: S704  escaped where it is put together


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slim", FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


@functools.cache
def _asset(name: str) -> str:
    return files("slim").joinpath(FOLDER, name).read_text(encoding="utf-8")


@functools.cache
def _packed() -> str:
    """The library, compressed to a third of its size."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


def _hash(script: str) -> str:
    """The hash of a script in the policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
