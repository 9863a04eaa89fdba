"""The documentation site, made of the pages beside this file and of the package's docstrings: ``make docs``."""

import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from build_site import name_of_tree  # noqa: E402

project = "torch_ctc_align"
author = copyright = "torch_ctc_align contributors"
release = name_of_tree((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 4
exclude_patterns = ["requirements.txt"]
suppress_warnings = ["misc.highlighting_failure"]  # blocks that mix a session with what a shell prints

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
maximum_signature_line_length = 88
napoleon_custom_sections = [("Returns", "params_style")]  # functions return several
napoleon_use_ivar = True
python_display_short_literal_types = True

html_theme = "furo"
html_title = "torch_ctc_align"
html_favicon = "_static/icon.svg"
html_show_sourcelink = False
html_copy_source = False
html_use_index = False  # api.html lists the names, and the search finds them
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("versions.js", {"defer": "defer"})]
templates_path = ["_templates"]
html_theme_options = {"navigation_with_keys": True}

# Pages of the site whose text stands elsewhere in the repository.
ELSEWHERE = {
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
    "security": "SECURITY.md",
    "benchmarks": "benchmarks/README.md",
    "examples": "examples/README.md",
    "recordings": "examples/data/README.md",
    "recordings_of_tests": "test/data/README.md",
}
SITE = {source: f"docs/{place}.md" for place, source in ELSEWHERE.items()} | {"README.md": "docs/index.md"}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def read_page(app, name, source):
    """Takes the text of a page from where it stands, and lets its links lead to the site's pages."""
    place = ELSEWHERE.get(name, f"docs/{name}.md")
    text = (ROOT / place).read_text(encoding="utf-8")

    def lead(link):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link[1]))
        return "](" + posixpath.relpath(SITE.get(target, target), posixpath.dirname(f"docs/{name}"))

    source[0] = LINK.sub(lead, text)


def setup(app):
    app.connect("source-read", read_page)
