"""The documentation says of every builder what there is, and names nothing that there is not."""

import importlib
import pathlib
import re
import shlex

import pytest

from docs.building import docstrings, markers, reference
from imbal_jax import recipes, robust_recipes
from imbal_jax.builders import FIXED, NAMED, SECTIONS, options_of
from imbal_jax.config import load_config
from imbal_jax.main import parse
from imbal_jax.resolve import resolve
from tests.tutorials import blocks

ROOT = pathlib.Path(__file__).parent.parent
METHODS = sorted((ROOT / "docs" / "methods").rglob("*.md"))
WRITTEN = [ROOT / "docs" / "index.md", *METHODS]
BUILDERS = [
    *((section, name) for section, builders in NAMED.items() for name in builders),
    *((section, section) for section in FIXED),
    ("model", "film"),
]
# Files, records, and options of other commands.
FREE = {"config.json", "model.safetensors", "class_curvature", "--scaling"}
# Sections whose every choice has a place on a hand-written page.
DESCRIBED = ("correction", "direction", "sampler", "model", "spectrum")
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_KEY = re.compile(r"[a-z]\w*(\.[a-z]\w*)*")


def relative(path):
    return path.relative_to(ROOT / "docs").as_posix()


@pytest.fixture(scope="module")
def known_names():
    """What code in the running text may name: sections, choices, options, and methods of recipes."""
    names = {*SECTIONS, *recipes.METHODS, *recipes.DIRECTIONS, *recipes.DIRECTED_METHODS, *robust_recipes.WRAPPERS}
    for section, name in BUILDERS:
        options = options_of(reference.builder_of(section, name))
        names |= {name, f"{section}.name", *options, *(f"{section}.{option}" for option in options)}
        names |= {f"inner.{option}" for option in ("name", *options) if section == "direction"}
    return names


def commands(text):
    """The commands of a page's blocks of sh, as arguments, without comments."""
    for block in blocks(text):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                if command := shlex.split(line, comments=True):
                    yield command


@pytest.mark.parametrize(("section", "name"), BUILDERS)
def test_reference_describes_every_option(section, name):
    builder = reference.builder_of(section, name)
    table = reference.options_html(section, name)
    said = reference.described_options(section, builder)
    assert set(said) == set(options_of(builder))
    assert all(said.values())
    assert table.count("<tr>") == (len(said) + 1 if said else 0)
    for option, parameter in options_of(builder).items():
        assert f"<td><code>{option}</code></td>" in table
        assert reference.default_text(parameter.default) in table


def test_every_section_has_a_page_with_all_its_choices():
    assert set(reference.SECTION_TEXTS) == set(SECTIONS)
    overview = reference.overview_page()
    for section in set(SECTIONS) - {"seeds"}:
        assert f"({section}.md)" in overview
        page = reference.section_page(section, markers.method_pages())
        headings = re.findall(r"^## `(\w+)`$", page, re.MULTILINE)
        expected = [*NAMED.get(section, ()), *(["film"] if section == "model" else [])]
        assert headings == expected


@pytest.mark.parametrize("section", DESCRIBED)
def test_every_choice_is_on_a_page_about_methods(section):
    pages = markers.method_pages()
    assert {name for where, name in pages if where == section} >= set(NAMED[section])
    assert ("model", "film") in pages


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_markers_name_builders(page):
    filled = markers.fill(page.read_text(), relative(page))
    assert "{{" not in filled
    assert filled.count("</table>") == filled.count("<table")


def test_a_marker_of_nothing_is_refused():
    with pytest.raises(KeyError, match="focall"):
        markers.fill("{{ correction.focall }}", "index.md")


@pytest.mark.parametrize("page", METHODS, ids=relative)
def test_page_about_a_method_has_formula_source_and_command(page):
    text = page.read_text()
    if page.name == "index.md":
        return
    assert text.startswith("# ")
    assert re.search(r"^```sh$", text, re.MULTILINE)
    if ("corrections/" in relative(page) or "directions/" in relative(page)) and page.name != "composed.md":
        assert "$$" in text
        if page.name != "minority_weight.md":
            assert "**Source.**" in text


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_commands_are_valid(page, monkeypatch):
    check_commands(page.read_text(), monkeypatch)


def test_commands_of_the_reference_are_valid(monkeypatch):
    check_commands(reference.overview_page(), monkeypatch)


def check_commands(text, monkeypatch):
    """Every config resolves; every other command starts a module or a script that exists."""
    monkeypatch.chdir(ROOT)
    for command in commands(text):
        if command[:3] == ["python", "-m", "imbal_jax.main"]:
            options, overrides = parse(command[3:])
            resolve(load_config(options.config or "configs/digits.py"), overrides)
        elif command[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(command[2]), command
        else:
            assert command[0] == "sh"
            assert (ROOT / command[1]).exists(), command


@pytest.mark.parametrize("page", WRITTEN, ids=relative)
def test_names_in_the_text_exist(page, known_names):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for code in _CODE.findall(text):
        key, equals, _ = code.removeprefix("--config.").partition("=")
        if key.startswith("imbal_jax."):
            module, _, name = key.rpartition(".")
            assert importlib.util.find_spec(key) or hasattr(importlib.import_module(module), name), code
        elif key.startswith("--task"):
            parse([code])
        elif "/" in key and not key.startswith("seed_K/"):
            assert (ROOT / key).exists(), code
        elif equals or _KEY.fullmatch(key):
            assert key in known_names or key in FREE or recipes.parse_method(key), code


def test_docstrings_are_taken_apart():
    def documented(first, *, second):
        """Does one thing, on
        two lines.

        A paragraph with `code` and a < b.

            formula * 2

        Args:
          first: a thing, whose
            text goes on: here.
          second: another.

        Raises:
          ValueError: never.
        """

    parsed = docstrings.parse(documented)
    assert parsed.summary == "Does one thing, on two lines."
    assert parsed.arguments == {"first": "a thing, whose text goes on: here.", "second": "another."}
    assert docstrings.block_html(parsed.description) == (
        "<p>A paragraph with <code>code</code> and a &lt; b.</p>\n<pre>formula * 2</pre>"
    )
    assert docstrings.block_html("- one\n  line\n- two") == "<ul><li>one line</li><li>two</li></ul>"
    with pytest.raises(ValueError, match="expected a docstring"):
        docstrings.parse(lambda: None)


def test_formulas_become_mathml():
    pytest.importorskip("latex2mathml")
    markdown = pytest.importorskip("markdown")
    from docs.building.mathematics import MathExtension, to_mathml

    page = markdown.markdown("$a_n * b$ and `$x$`\n\n$$ \\frac{1}{N}\n\\sum_n a_n $$", extensions=[MathExtension()])
    assert page.count("<math") == 2
    assert "<code>$x$</code>" in page
    assert 'display="block"' in page
    assert "<mfrac>" in page
    assert "<em>" not in page
    with pytest.raises(ValueError, match="cannot convert"):
        to_mathml(r"\nosuchthing x")
