"""Sphinx: the pages as they are, and an API reference from the docstrings (``make docs``)."""

import qmpalloc

for name in qmpalloc.__all__:  # what is imported on first use autodoc does not see
    setattr(qmpalloc, name, getattr(qmpalloc, name))

project = "qmpalloc"
release = qmpalloc.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["README.md", "docs/*.md", "docs/results/*.md", "guest_agent/README.md", "vm-images/README.md"]
html_theme = "furo"

myst_heading_anchors = 4  # links name headings, as they do where the pages are read
suppress_warnings = ["myst.xref_missing"]  # links to directories, and to pages that are not of the site

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "imported-members": True, "undoc-members": True}
autodoc_typehints_format = "short"
napoleon_use_ivar = True

CONTENTS = """
```{toctree}
:hidden:
:glob:

docs/*
docs/results/*
guest_agent/README
vm-images/README
```
"""


def add_contents(_app: object, page: str, source: list[str]) -> None:
    """Give the first page the list of all, which nobody needs to see who reads it as a file."""
    if page == root_doc:
        source[0] += CONTENTS


def setup(app: object) -> None:
    """Connect to Sphinx."""
    app.connect("source-read", add_contents)  # type: ignore[attr-defined]
