"""Hooks of the documentation site: links to source files lead to the API reference, equations become MathML, Chinese pages say so."""

import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "daguerre"
SOURCE_LINK = re.compile(r"\]\((?:\.\./)+src/daguerre/([\w/]*?)/?(?:(\w+)\.py)?(#[\w-]+)?\)")
EQUATION = re.compile(r"^\$\$(.+?)\$\$$", re.MULTILINE | re.DOTALL)
OUTSIDE_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+(?!src/)[^)\s]*\)")


def packages() -> list[str]:
    """The packages of daguerre that have Python modules."""
    return sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add one generated reference page for each package."""
    for name in packages():
        text = f"# `daguerre.{name}`\n\n::: daguerre.{name}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> None:
    """Name the folder of Chinese pages in the navigation."""
    for page in nav.pages:
        if page.parent and page.parent.title == "Zh":
            page.parent.title = "简体中文"


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """State the language of a Chinese page, by which a browser chooses the forms of its characters."""
    return output.replace('<html lang="en"', '<html lang="zh-Hans"', 1) if "/zh/" in page.file.src_uri else output


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to source files into links to the reference, links to other files outside docs/ into plain text, and TeX into MathML."""
    markdown = EQUATION.sub(lambda match: f"<p>{convert(' '.join(match[1].split()), display='block')}</p>", markdown)
    up = "../" * page.file.src_uri.count("/")

    def reference(match: re.Match[str]) -> str:
        package, _, rest = match[1].partition("/")
        module = ".".join(part for part in ("daguerre", package, *rest.split("/"), match[2]) if part)
        return f"]({up}reference/{package}.md#{module})" if package in packages() else f"]({up}index.md)"

    markdown = SOURCE_LINK.sub(reference, markdown)
    depth = page.file.src_uri.count("/")

    def inside(match: re.Match[str]) -> str:
        climbs = match[0].split("](")[1].count("../")
        return match[0] if climbs <= depth else match[1]

    return OUTSIDE_LINK.sub(inside, markdown)
