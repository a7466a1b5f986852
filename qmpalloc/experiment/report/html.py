"""A report as one HTML file that needs nothing else: readable on a phone, on paper, in light and in dark."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from html import escape

from qmpalloc.experiment.report.document import Block, Bullets, Heading, Paragraph, Picture, Table

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --back: #ffffff; --soft: #f3f4f6; --line: #c9ced6; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e7eb; --back: #15181c; --soft: #20252b; --line: #3c444d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
p.strong { font-size: 1.1rem; font-weight: 600; border-left: .3rem solid #0072b2; padding-left: .8rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; min-width: 60%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; font-weight: 600; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  overflow-wrap: normal; }
th { background: var(--soft); } th:first-child, td:first-child, .text :is(th, td) { text-align: left; }
figure { margin: 1.5rem 0; } figcaption { font-size: .9rem; }
figure img { width: 100%; height: auto; background: #ffffff; border-radius: .3rem; }
figure.first img { max-width: 44rem; }
@media print { :root { color-scheme: light; --text: #000; --back: #fff; --soft: #eee; --line: #999; }
  body { max-width: none; font-size: 9.5pt; } .scroll { overflow: visible; } tr, figure { break-inside: avoid; }
  h2 { break-after: avoid; } }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html(blocks: Iterable[Block], *, title: str, picture: Callable[[str], bytes]) -> str:
    """Return the text of a file.

    Args:
        blocks: Of the report.
        title: Of the page.
        picture: Returns the SVG of a name.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(_block(block, picture) for block in blocks)
        + "\n</main>\n</body>\n</html>\n"
    )


def _block(block: Block, picture: Callable[[str], bytes]) -> str:
    match block:
        case Heading(text=text, level=level):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text=text, strong=strong):
            return f'<p class="strong">{escape(text)}</p>' if strong else f"<p>{escape(text)}</p>"
        case Bullets(items=items):
            return "<ul>\n" + "\n".join(f"<li>{escape(item)}</li>" for item in items) + "\n</ul>"
        case Picture(file=file, title=title, caption=caption, first=first):
            data = base64.b64encode(picture(file)).decode()
            image = f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
            said = f"<figcaption><b>{escape(title)}.</b> {escape(caption)}</figcaption>"
            kind = ' class="first"' if first else ""
            return f"<figure{kind}>\n{image}\n{said}\n</figure>"
        case Table(caption=caption, columns=columns, rows=rows, numbers=numbers):
            kind = "numbers" if numbers else "text"
            head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
            body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            return (
                f'<div class="scroll" tabindex="0">\n<table class="{kind}">\n<caption>{escape(caption)}</caption>\n'
                f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
            )
