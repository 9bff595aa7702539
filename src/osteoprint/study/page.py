"""The page of a report: plain HTML from the report's figures and pictures."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from osteoprint.study.markup import Figures, Json, script_json
from osteoprint.study.modes_section import modes
from osteoprint.study.rebuilt_section import rebuilt
from osteoprint.study.sections import bones, how, identity, opening, shape, tables, the_map

# The page may run its own scripts and show its own pictures; it may load nothing.
_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def page(values: Json, pictures: Json) -> str:
    """The whole page.

    Parameters
    ----------
    values : what ``report.json`` holds.
    pictures : data URIs (``probes``, ``films``, ``portraits``, ``stills``), the colours of
        the distances with their end ``top_mm``, and ``data`` for the page's scripts.
    """
    figure = Figures(values)
    made = values["created"].replace("T", " ").replace("+00:00", " UTC")
    own = files("osteoprint.study")
    style, script = (own.joinpath(n).read_text(encoding="utf-8") for n in ("page.css", "page.js"))
    body = [
        opening(figure, pictures),
        "<main>",
        identity(figure, pictures),
        the_map(figure),
        shape(figure, pictures),
        rebuilt(figure, pictures),
        modes(figure, pictures),
        tables(figure),
        bones(figure, pictures),
        how(figure),
        "</main>",
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="osteoprint {escape(figure.at("machine/versions/osteoprint"))}">
<title>{escape(values["title"])} – osteoprint</title>
<style>
{style}</style>
</head>
<body>
{"".join(body)}
<footer><p class="note soft">Made by osteoprint
{escape(figure.at("machine/versions/osteoprint"))} on
<time datetime="{escape(values["created"])}">{escape(made)}</time>.
The same figures, as JSON: report.json beside this page. Not a medical device:
no diagnosis, treatment or legal identification may rest on it.</p>
</footer>
<script type="application/json" id="data">{script_json(pictures["data"])}</script>
<script>
{script}</script>
</body>
</html>
"""
