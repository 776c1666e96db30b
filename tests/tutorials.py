"""Runs tutorials: the code blocks of a Markdown page, one after another, in a copy of the project.

A block of sh is run by a shell that stops at the first failure, a block of python as a script. A comment in front of a
block changes what becomes of it:

  <!-- file: NAME -->                  it is a file
  <!-- append: NAME -->                it goes to the end of a file
  <!-- insert: NAME after: TEXT -->    it goes behind the first line of a file that holds the text
  <!-- fails -->                       the block of sh has to fail
  <!-- output -->                      each of its lines has to be somewhere in the output of the block before
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

_BLOCK = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INSERT = re.compile(r"insert: (\S+) after: (.+)")


class Block(NamedTuple):
    """A code block of a page."""

    comment: str  # in front of it, "" for none
    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """The code blocks of a page, in order."""
    return [Block(comment, language, text) for comment, language, text in _BLOCK.findall(markdown)]


def copy_project(root: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies what tutorials use of the project into a folder."""
    for name in ("imbal_jax", "configs", "experiments", "tests"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", folder)


def run_tutorial(markdown: str, folder: pathlib.Path) -> None:
    """Does what a tutorial says.

    Args:
      markdown: of the page.
      folder: a copy of the project.

    Raises:
      AssertionError: a block failed, or did not say what it should.
    """
    output = ""
    for block in blocks(markdown):
        action, _, name = block.comment.partition(": ")
        if action == "output":
            expect_output(block.text, output)
        elif action in ("file", "append"):
            with (folder / name).open("w" if action == "file" else "a") as stream:
                stream.write(block.text if action == "file" else f"\n\n{block.text}")
        elif action == "insert":
            insert(folder, block)
        elif block.language in ("sh", "python"):
            output = run_block(block, folder)
        else:
            raise AssertionError(f"expected a block of sh or python, or a comment, got {block}")


def insert(folder: pathlib.Path, block: Block) -> None:
    """Puts a block behind the first line that holds a text."""
    found = _INSERT.fullmatch(block.comment)
    assert found, block.comment
    path = folder / found[1]
    lines = path.read_text().splitlines(keepends=True)
    places = [number for number, line in enumerate(lines, 1) if found[2] in line]
    assert places, f"{found[1]} has no line with {found[2]!r}"
    path.write_text("".join([*lines[: places[0]], block.text, *lines[places[0] :]]))


def run_block(block: Block, folder: pathlib.Path) -> str:
    """Runs a block; returns what it printed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHONPATH"))}
    environment["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
    command = ["sh", "-e"] if block.language == "sh" else [sys.executable, "-"]
    done = subprocess.run(
        command, input=block.text, cwd=folder, env=environment, text=True, capture_output=True, timeout=600, check=False
    )
    output = done.stdout + done.stderr
    failed = done.returncode != 0
    assert failed == (block.comment == "fails"), f"exit status {done.returncode}:\n{block.text}\n{output[-3000:]}"
    return output


def expect_output(expected: str, output: str) -> None:
    """Looks for every line of a text in an output, whatever the blanks."""
    printed = " ".join(output.split())
    for line in expected.splitlines():
        assert " ".join(line.split()) in printed, f"expected {line!r} in:\n{output[-3000:]}"
