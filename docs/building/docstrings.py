"""Docstrings in Google's style, taken apart and written as HTML."""

import html
import inspect
import re
from typing import Any, NamedTuple

_HEADING = re.compile(r"(Args|Attributes|Returns|Raises):")
_ENTRY = re.compile(r"  (\w+): (.*)")
_CODE = re.compile(r"``(.+?)``|`(.+?)`", re.DOTALL)
_SAME_OPTIONS = re.compile(r"options are those of `(\w+)`")


class Docstring(NamedTuple):
    """A docstring's parts."""

    summary: str  # its first paragraph, on one line
    description: str  # the paragraphs after it, as they stand
    arguments: dict[str, str]  # name -> what is said of it, on one line
    same_options_as: str | None  # the function that says what the options mean, where this one refers to it


def parse(documented: Any) -> Docstring:
    """Takes the docstring of a function or class apart.

    Raises:
      ValueError: it has none.
    """
    text = inspect.getdoc(documented)
    if not text:
        raise ValueError(f"expected a docstring of {documented!r}, got none")
    parts: dict[str, list[str]] = {"": []}
    current = parts[""]
    for line in text.splitlines():
        heading = _HEADING.fullmatch(line)
        if heading:
            current = parts.setdefault(heading[1], [])
        else:
            current.append(line)
    summary, _, description = "\n".join(parts[""]).strip().partition("\n\n")
    same = _SAME_OPTIONS.search(description)
    arguments = _entries(parts.get("Args", parts.get("Attributes", [])))
    return Docstring(" ".join(summary.split()), description.strip(), arguments, same[1] if same else None)


def _entries(lines: list[str]) -> dict[str, str]:
    """The entries of a list of arguments."""
    entries: dict[str, list[str]] = {}
    words: list[str] = []
    for line in lines:
        entry = _ENTRY.fullmatch(line)
        if entry:
            words = entries.setdefault(entry[1], [])
        words.append(entry[2] if entry else line.strip())
    return {name: " ".join(" ".join(parts).split()) for name, parts in entries.items()}


def inline_html(text: str) -> str:
    """A line of a docstring as HTML: code in backticks, everything else as it is."""
    return _CODE.sub(lambda found: f"<code>{found[1] or found[2]}</code>", html.escape(text, quote=False))


def block_html(text: str) -> str:
    """Paragraphs, lists and indented formulas of a docstring as HTML."""
    return "\n".join(_block(block) for block in re.split(r"\n\s*\n", text) if block.strip())


def _block(block: str) -> str:
    """One of them."""
    if block.startswith("    "):
        return f"<pre>{html.escape(inspect.cleandoc(block), quote=False)}</pre>"
    if block.startswith("- "):
        items = re.split(r"^- ", block, flags=re.MULTILINE)[1:]
        return "<ul>" + "".join(f"<li>{inline_html(' '.join(item.split()))}</li>" for item in items) + "</ul>"
    return f"<p>{inline_html(' '.join(block.split()))}</p>"
