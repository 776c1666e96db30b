"""What stands between double braces on a page: tables made of the builders."""

import functools
import pathlib
import re

from docs.building.reference import choices_table, entry

FOLDER = pathlib.Path(__file__).parent.parent
_ENTRY = re.compile(r"^\{\{ (\w+)\.(\w+) \}\}$", re.MULTILINE)
_CHOICES = re.compile(r"^\{\{ choices (\w+) \}\}$", re.MULTILINE)


@functools.cache
def method_pages() -> dict[tuple[str, str], str]:
    """The hand-written page of every builder that has one: (section, name) -> path from the folder `docs`."""
    pages: dict[tuple[str, str], str] = {}
    for path in sorted((FOLDER / "methods").rglob("*.md")):
        for section, name in _ENTRY.findall(path.read_text(encoding="utf-8")):
            pages[section, name] = path.relative_to(FOLDER).as_posix()
    return pages


def fill(markdown: str, page: str) -> str:
    """A page with its tables: {{ section.name }} for a builder's options, {{ choices section }} for all builders.

    Args:
      markdown: of the page.
      page: its path from the folder `docs`.

    Raises:
      KeyError: there is no such section or builder.
    """
    markdown = _ENTRY.sub(lambda found: entry(found[1], found[2]), markdown)
    return _CHOICES.sub(lambda found: choices_table(found[1], method_pages(), page), markdown)
