"""Every tutorial is followed to the letter, in a copy of the project."""

import pathlib

import pytest

from tests.tutorials import blocks, copy_project, expect_output, run_tutorial

ROOT = pathlib.Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
# `python -m` puts the folder that it is run in first, so that a tutorial runs the copy and not what is installed.


@pytest.fixture
def project(tmp_path):
    copy_project(ROOT, tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tutorial_does_what_it_says(page, project):
    run_tutorial(page.read_text(), project)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_fence_of_a_tutorial_is_seen(page):
    text = page.read_text()
    assert 2 * len(blocks(text)) == sum(line.startswith("```") for line in text.splitlines()) > 0


def test_the_runner_notices_failures(tmp_path):
    (tmp_path / "list.txt").write_text("one\nthree\n")
    run_tutorial("<!-- insert: list.txt after: one -->\n```python\ntwo\n```\n", tmp_path)
    assert (tmp_path / "list.txt").read_text() == "one\ntwo\nthree\n"
    run_tutorial("<!-- fails -->\n```sh\necho no; false\n```\n\n<!-- output -->\n```text\nno\n```\n", tmp_path)
    for page in (
        "```sh\nfalse\necho yes\n```",
        "```python\nassert 1 == 2\n```",
        "<!-- fails -->\n```sh\ntrue\n```",
        "```sh\necho yes\n```\n<!-- output -->\n```text\nno\n```",
        "<!-- insert: list.txt after: four -->\n```python\nfive\n```",
        "```rust\n```",
    ):
        with pytest.raises(AssertionError):
            run_tutorial(page, tmp_path)
    with pytest.raises(AssertionError, match="expected 'b'"):
        expect_output("a\nb", "a")
