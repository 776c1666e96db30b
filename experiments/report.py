"""Writes the tables and figures of a study from what its runs have left so far.

  python -m experiments.launch quick --workdir=runs
  python -m experiments.report quick --workdir=runs
  python -m experiments.report quick --workdir=runs --only=alpha=0.2,1 --only=method=baseline,ief

Written below DIR/STUDY/report: report.html, a page that needs nothing beside itself; report.md; report.tex, tables for
LaTeX; report.csv, every number of the tables in full precision; seeds.csv, every number of every seed; and figures. A
study may be under way: what has no result yet is marked missing. Tables have the mean and the standard error over
seeds, the published value beside them, and the difference with a confidence interval, see
`experiments.reporting.statistics`. With --only, everything is of a part of the study, in place of an earlier report.

Pictures in DIR/STUDY/pictures are shown below the others, for figures that are of no run, such as
`python -m experiments.toy_boundary --output=runs/thesis_4_2/pictures`.
"""

import argparse
import io
import pathlib
import sys
from collections.abc import Mapping, Sequence

import matplotlib

from experiments.reporting.collect import Collected, collect
from experiments.reporting.latex import latex_tables
from experiments.reporting.long_form import seed_lines, table_lines
from experiments.reporting.markdown import markdown_page
from experiments.reporting.model import build_table
from experiments.reporting.page import Drawn, html_page
from experiments.reporting.pictures import Picture, draw_pictures
from experiments.reporting.text import progress
from experiments.seeds import parse_seeds
from experiments.selection import parse_only, select
from experiments.study import load_study, study_names
from imbal_jax.main import guarded


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line.

    Raises:
      InputError: see `parse_seeds` and `parse_only`.
    """
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("study", metavar="STUDY", help=f"a .py file, or {', '.join(study_names())}")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs"), metavar="DIR")
    parser.add_argument("--seeds", metavar="A,B,...", help="only these (default: all there are)")
    parser.add_argument("--only", action="append", default=[], metavar="AXIS=V1,V2", help="some cells; repeatable")
    parser.add_argument(
        "--data", metavar="NAME", help="what the tables call the data, such as 'CIFAR-10, JPEG copy' for your own copy"
    )
    options = parser.parse_args(arguments)
    if options.seeds is not None:
        options.seeds = parse_seeds(options.seeds)
    options.only = parse_only(options.only)
    return options


def run(arguments: list[str]) -> int:
    """Writes the report; returns the exit status."""
    options = parse(arguments)
    workdir = options.workdir.expanduser()
    study = select(load_study(options.study, workdir), options.only)
    name = title(study.name, options.only)
    collected = collect(study, workdir, options.seeds, options.study)
    tables = [build_table(collected, table, options.data) for table in study.tables]
    folder = collected.folder / "report"
    pictures = write_pictures(draw_pictures(collected), folder / "figures") + attached(collected)
    listed = [(picture.caption, _path(picture)) for picture in pictures]
    files = {
        "report.html": html_page(name, tables, pictures, collected.seeds),
        "report.md": markdown_page(name, tables, listed),
        "report.tex": latex_tables(tables),
        "report.csv": table_lines(study.name, tables),
        "seeds.csv": seed_lines(collected),
    }
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    print(f"{name}: {progress(tables)}")
    print(f"written to {folder}: {', '.join(files)}, {len(pictures)} figures")
    return 0


def title(study: str, only: Mapping[str, tuple[str, ...]]) -> str:
    """What a report is of: a study, and which part of it."""
    parts = [f"{axis} = {', '.join(values)}" for axis, values in only.items()]
    return f"{study}, only {'; '.join(parts)}" if parts else study


def write_pictures(pictures: Sequence[Picture], folder: pathlib.Path) -> list[Drawn]:
    """Writes every figure as SVG and PDF, in place of what an earlier report left, and keeps the SVG for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.svg"), *folder.glob("*.pdf")):
        old.unlink()
    drawn = []
    for picture in pictures:
        content = io.BytesIO()
        # Without these the same figure would be other bytes every time.
        with matplotlib.rc_context({"svg.hashsalt": picture.name, "pdf.fonttype": 42}):
            picture.figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
            picture.figure.set_layout_engine("none")  # its places are found, and finding them takes long
            picture.figure.savefig(folder / f"{picture.name}.pdf", metadata={"CreationDate": None})
        (folder / f"{picture.name}.svg").write_bytes(content.getvalue())
        drawn.append(Drawn(picture.name, picture.caption, "image/svg+xml", content.getvalue()))
    return drawn


def attached(collected: Collected) -> list[Drawn]:
    """The pictures that lie in the study's folder, by the names of their files."""
    paths = sorted((collected.folder / "pictures").glob("*.png"))
    return [Drawn(path.stem, path.stem.replace("_", " "), "image/png", path.read_bytes()) for path in paths]


def _path(picture: Drawn) -> str:
    """Where a picture lies, from the report's folder."""
    drawn = picture.kind == "image/svg+xml"
    return f"figures/{picture.name}.svg" if drawn else f"../pictures/{picture.name}.png"


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
