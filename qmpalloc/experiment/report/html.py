"""A report as one HTML file that needs nothing else: readable on a phone, on paper, in light and in dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html import escape

from markdown_it import MarkdownIt

from qmpalloc.experiment.report.markdown import anchor

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --soft: #f3f4f6; --line: #c9ced6; --link: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
a { color: var(--link); } p:has(img) { margin-bottom: .4rem; }
p:has(> strong) { font-size: 1.1rem; border-left: .3rem solid var(--link); padding-left: .8rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums;
  font-size: .875rem; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: normal; }
th { background: var(--soft); }
th:first-child, td:first-child { position: sticky; left: 0; min-width: 6.5rem; }
td:first-child { background: var(--back); }
img { width: 100%; max-width: 46rem; height: auto; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e7eb; --back: #15181c; --soft: #20252b; --line: #3c444d; --link: #6cb4ee; }
  img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; } }
@media print { :root { color-scheme: light; --text: #000; --back: #fff; --soft: #eee; --line: #999; }
  body { max-width: none; font-size: 9.5pt; } table { display: table; } tr, img { break-inside: avoid; }
  img { filter: none; mix-blend-mode: normal; } h2 { break-after: avoid; } }
"""
_WITHIN_A_FIGURE = re.compile(r"(?<![;,]) (?!\()")
"""Spaces of a cell of figures at which no line may end: "1.5 s", "(1 to 2)"."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html(text: str, *, title: str, picture: Callable[[str], bytes]) -> str:
    """Return the text of a file.

    Args:
        text: The report as Markdown; HTML in it is only text.
        title: Of the page.
        picture: Returns the SVG of a name.
    """
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = reader.parse(text)
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", anchor(tokens[at + 1].content))
        if token.type == "td_open" and "right" in str(token.attrs.get("style")):
            for child in tokens[at + 1].children or ():
                child.content = _WITHIN_A_FIGURE.sub("\N{NO-BREAK SPACE}", child.content)
        for image in (child for child in token.children or () if child.type == "image"):
            data = base64.b64encode(picture(str(image.attrs["src"]))).decode()
            image.attrSet("src", f"data:image/svg+xml;base64,{data}")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + str(reader.renderer.render(tokens, reader.options, {}))
        + "</main>\n</body>\n</html>\n"
    )
