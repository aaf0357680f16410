"""README.md is the home page of these pages, and what they link to outside docs/ lies beside them: MkDocs hook."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
_LINK = re.compile(r"\]\((?!https?://)(?P<path>[^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README.md as `index.md`, and files outside docs/ under their path in the repository."""
    readme = (ROOT / "README.md").read_text()
    targets = {match["path"] for match in _LINK.finditer(readme)}
    for page in (ROOT / "docs").glob("*.md"):
        targets |= {match["path"][3:] for match in _LINK.finditer(page.read_text()) if match["path"].startswith("../")}
    for path in sorted(targets):
        if not path.startswith("docs/") and path != "README.md" and (ROOT / path).is_file():
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    files.append(File.generated(config, "index.md", content=readme.replace("](docs/", "](")))
    files.append(File.generated(config, "site.css", abs_src_path=str(Path(__file__).with_name("site.css"))))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead links that leave docs/ to where `on_files` put their targets."""
    return markdown.replace("](../README.md", "](index.md").replace("](../", "](")
