"""Formulas between dollar signs become MathML when a page is built; browsers show it without scripts."""

import re
from xml.etree import ElementTree

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

# Below code in backticks (190) and above backslash escapes (180): LaTeX is full of backslashes.
_PRIORITY = 185
# What latex2mathml does not know and would pass on as text.
_LEFT_OVER = re.compile(r"<m[ot][^>]*>(&amp;|&|\\[^<]*)</m[ot]>|<mi>(&amp;|&|\\[^<]+)</mi>")


class _Formula(InlineProcessor):
    """$...$ within a line, or $$...$$ on lines of its own."""

    def __init__(self, pattern: str, md: Markdown, display: str) -> None:
        super().__init__(pattern, md)
        self.display = display

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802
        """The formula of a match, put away until the page is written."""
        return self.md.htmlStash.store(to_mathml(m[1], self.display)), m.start(0), m.end(0)


def to_mathml(latex: str, display: str = "inline") -> str:
    """A formula as MathML.

    Args:
      latex: without dollar signs.
      display: "inline" or "block".

    Raises:
      ValueError: the formula has a command that the converter does not know.
    """
    mathml = convert(" ".join(latex.split()), display=display)
    ElementTree.fromstring(mathml)
    if left := _LEFT_OVER.search(mathml):
        raise ValueError(f"formula: cannot convert {left[1] or left[2]!r} in {latex!r}")
    return mathml


class MathExtension(Extension):
    """Formulas in Python-Markdown."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Registers both patterns."""
        md.inlinePatterns.register(_Formula(r"\$\$(.+?)\$\$", md, "block"), "display_math", _PRIORITY + 1)
        md.inlinePatterns.register(_Formula(r"(?<!\\)\$(?!\s)([^$]+?)(?<!\s)\$", md, "inline"), "math", _PRIORITY)
