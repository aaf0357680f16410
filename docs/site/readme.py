"""README.md is the home page of these pages: MkDocs hook."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
_LINK = re.compile(r"\]\((?!https?://)(?P<path>[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as `index.md`, and what it links to outside docs/."""
    text = (ROOT / "README.md").read_text()
    for path in sorted({match["path"] for match in _LINK.finditer(text)}):
        if not path.startswith("docs/"):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "index.md", content=text.replace("](docs/", "](")))
    files.append(File.generated(config, "site.css", abs_src_path=str(Path(__file__).with_name("site.css"))))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead links to README.md to the home page."""
    return markdown.replace("](../README.md", "](index.md")
