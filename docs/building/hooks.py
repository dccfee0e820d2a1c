"""What MkDocs needs to read docs/ as GitHub does: links out of docs/, the names of anchors, and bars in tables."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.plugins import get_plugin_logger
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()\.\./([^)#]+)(?=[)#])")
LOG = get_plugin_logger("hooks")


def on_config(config: Any) -> Any:
    """Headings get the anchors that they have on GitHub."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A link to a file outside of docs/ leads to the repository; one to a file that is not there is a warning."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # a column with one entry

    def outside(link: re.Match[str]) -> str:
        target = ROOT / link[1]
        if not target.exists():
            LOG.warning("%s links to ../%s, which is not there", page.file.src_uri, link[1])
        return f"{repository()}/{'tree' if target.is_dir() else 'blob'}/main/{link[1]}"

    return LINK.sub(outside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """In a table, `\\|` is a bar, in code too; an option is not broken after its hyphens (site.css)."""
    html = re.sub(r"(?s)<table>.*?</table>", lambda table: table[0].replace("\\|", "|"), html)
    return re.sub(r"<code>(?=-[^<]{1,38}</code>)", '<code class="option">', html)


def repository() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"]["Homepage"])
