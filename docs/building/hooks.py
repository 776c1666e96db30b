"""What MkDocs calls: it adds the configuration reference, fills tables, and turns formulas into MathML."""

import pathlib
import sys

# MkDocs loads this file by its path. The documentation is that of the sources beside it, whatever is installed.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.building.markers import fill, method_pages
from docs.building.mathematics import MathExtension
from docs.building.reference import overview_page, section_page
from imbal_jax.builders import SECTIONS


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the extension for formulas."""
    config.markdown_extensions.append(MathExtension())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the configuration reference."""
    pages = {"index": overview_page()}
    pages.update({section: section_page(section, method_pages()) for section in SECTIONS if section != "seeds"})
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills the tables of a page."""
    del config, files
    return fill(markdown, page.file.src_uri)
