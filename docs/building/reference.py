"""The configuration reference, made of the builders' signatures and docstrings."""

import html
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from docs.building.docstrings import Docstring, block_html, inline_html, parse
from imbal_jax.builders import DEFAULTS, FIXED, NAMED, NESTED, SECTIONS, nested_builders, options_of

# What a section is about; its choices and options speak for themselves.
SECTION_TEXTS: Mapping[str, str] = {
    "seeds": 'Whole numbers separated by commas, such as `"0,1,2"`: the run is repeated with each, and its results are'
    " averaged.",
    "data": "Where images or recordings come from.",
    "classes": "Which classes of the source are told apart.",
    "profile": "How many training examples each class keeps. Validation and test sets are left as they are.",
    "label_noise": "Wrong labels given to training examples on purpose.",
    "sampler": "Which examples form the batches of an epoch.",
    "augmentation": "Random changes of training images.",
    "model": "The network, its classifier and its block for conditions.",
    "correction": "What the loss of an example becomes.",
    "direction": "What stands where the gradient stands.",
    "step_rule": "From a direction to a step: momentum, decay, clipping.",
    "schedule": "The learning rate in the course of training.",
    "spectrum": "How `--task=spectrum` takes eigenvalue densities of a trained run. It does not change training.",
    "validation": "The validation set, where the source has none of its own.",
    "training": "How long, in which batches, and which parameters are kept.",
    "evaluation": "How splits are evaluated.",
    "record": "What is recorded beside the metrics.",
}


def builder_of(section: str, name: str) -> Callable:
    """The builder of a name in a section, or of the block `film` of models.

    Raises:
      KeyError: there is none.
    """
    if section in FIXED:
        return FIXED[section]
    if section == "model" and name == "film":
        return next(builders["film"] for builders in NESTED.values() if "film" in builders)
    return NAMED[section][name]


def described_options(section: str, builder: Callable) -> dict[str, str]:
    """What the docstring says of every option of a builder.

    Args:
      section: that the builder belongs to.
      builder: its docstring may refer to another one's of the section.

    Raises:
      ValueError: nothing is said of an option.
    """
    docstring = parse(builder)
    said = docstring.arguments
    if docstring.same_options_as is not None:
        said = {**parse(builder_of(section, docstring.same_options_as)).arguments, **said}
    missing = [option for option in options_of(builder) if option not in said]
    if missing:
        raise ValueError(f"{section}: {builder.__name__} says nothing of {', '.join(missing)}")
    return {option: said[option] for option in options_of(builder)}


def type_text(annotation: Any) -> str:
    """An option's type in words."""
    if nested_builders(annotation) is not None:
        members = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
        kind = next(member for member in members if member is not types.NoneType)
        return {"Correction": "a correction", "Direction": "a direction"}.get(kind.__name__, "<code>film</code>")
    if typing.get_origin(annotation) is tuple:
        item = typing.get_args(annotation)[0]
        inner = "tuples of " if typing.get_origin(item) is tuple else ""
        return f"tuple of {inner}{(typing.get_args(item) or (item,))[0].__name__}"
    return annotation.__name__


def default_text(default: Any) -> str:
    """An option's default as it would be typed; floats that nobody types are rounded."""
    if default is inspect.Parameter.empty:
        return "<em>needed</em>"
    if default is None:
        return "none"
    shown = f"{default:.6g}" if isinstance(default, float) and len(repr(default)) > 8 else repr(default)
    return f"<code>{html.escape(shown, quote=False)}</code>"


def options_html(section: str, name: str) -> str:
    """The table of a builder's options, on one line, as raw HTML wants it."""
    builder = builder_of(section, name)
    said = described_options(section, builder)
    if not said:
        return '<p class="options">No options.</p>'
    rows = "".join(
        f"<tr><td><code>{option}</code></td><td>{type_text(parameter.annotation)}</td>"
        f"<td>{default_text(parameter.default)}</td><td>{inline_html(said[option])}</td></tr>"
        for option, parameter in options_of(builder).items()
    )
    head = "<thead><tr><th>option</th><th>type</th><th>default</th><th>meaning</th></tr></thead>"
    return f'<table class="options">{head}<tbody>{rows}</tbody></table>'


def entry(section: str, name: str) -> str:
    """What a method's page says of its builder: where it is, and its options."""
    builder = builder_of(section, name)
    where = f"{builder.__module__}.{builder.__name__}"
    key = f"model.{name}" if name == "film" else section
    head = f'<p class="builder"><code>{key}.name={name}</code> is <code>{where}</code></p>'
    return f"{head}\n\n{options_html(section, name)}"


def choices_table(section: str, pages: Mapping[tuple[str, str], str], start: str) -> str:
    """A section's choices with the first sentences of their docstrings, as a Markdown table.

    Args:
      section: with choices.
      pages: the page of a choice, by section and name; choices without one link to the reference.
      start: the page that the table is for, from whose folder links go out.
    """
    rows = []
    for name, builder in NAMED[section].items():
        target = pages.get((section, name), f"reference/{section}.md#{name}")
        summary = _not_markdown(inline_html(parse(builder).summary))
        rows.append(f"| [`{name}`]({'../' * start.count('/')}{target}) | {summary} |")
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def _not_markdown(text: str) -> str:
    """Text whose characters Markdown leaves alone."""
    return "".join(f"&#{ord(each)};" if each in "|*_[]$" else each for each in text)


def section_page(section: str, pages: Mapping[tuple[str, str], str]) -> str:
    """The reference of a section, in Markdown."""
    start = f"reference/{section}.md"
    lines = [f"# `{section}`", SECTION_TEXTS[section]]
    if section in FIXED:
        return "\n\n".join([*lines, _description(parse(FIXED[section])), options_html(section, section)])
    lines.append(f"The choice stands in `{section}.name`; the other keys are its options.{_when_left_out(section)}")
    lines.append(choices_table(section, {}, start))
    for name, builder in NAMED[section].items():
        page = pages.get((section, name))
        more = [] if page is None else [f"Formula, source and a command: [{name}](../{page})."]
        docstring = parse(builder)
        text = f"<p>{inline_html(docstring.summary)}</p>\n{_description(docstring)}"
        lines += [f"## `{name}`", text.strip(), *more, options_html(section, name)]
    if section == "model":
        lines += [
            "## `film`",
            "The block that the option `film` of a model takes: `model.film.name=film`.",
            options_html("model", "film"),
        ]
    return "\n\n".join(lines) + "\n"


def _description(docstring: Docstring) -> str:
    """What a docstring says beside its first paragraph, as HTML without blank lines."""
    return block_html(docstring.description)


def _when_left_out(section: str) -> str:
    """What stands for a section that a config file leaves out."""
    default = DEFAULTS.get(section)
    return "" if default is None else f" A config may leave it out: `{default['name']}` then."


def overview_page() -> str:
    """The first page of the reference, in Markdown."""
    rows = []
    for section in SECTIONS:
        if section == "seeds":
            rows.append(f"| `seeds` | {SECTION_TEXTS[section]} |")
        else:
            rows.append(f"| [`{section}`]({section}.md) | {SECTION_TEXTS[section]} |")
    return OVERVIEW.replace("@SECTIONS@", "\n".join(["| section | what it decides |", "|---|---|", *rows]))


OVERVIEW = """# Configuration

A config is a Python file with a function `get_config()` that returns a `ConfigDict`; what stands behind a colon is its
argument, in the files under `configs/` the name of a method:

```sh
python -m imbal_jax.main --config=configs/digits.py:ldam_drw --workdir=runs/ldam_drw
```

Every section is a dictionary. Most of them choose a builder by `name`; the other keys are that builder's options.
What is left out has the builder's default, and the completed config lies in the run folder as `config.json`. Any leaf
can be overridden on the command line; a new `name` starts its section anew from the defaults of that builder:

```sh
python -m imbal_jax.main --config=configs/digits.py --config.correction.name=focal \\
  --config.correction.gamma=2 --print_config
```

An unknown section, name or option, a value of another type and one out of its range are errors on one line (exit
status 2); for names it gives the nearest valid ones. Tuples are written with commas, `--config.spectrum.classes=0,8`.
Whole numbers pass as floats.

These pages are made from the signatures and docstrings of the builders in `imbal_jax/builders.py` whenever the site
is built.

@SECTIONS@
"""
