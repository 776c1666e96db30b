"""Compares the Hessian spectra of runs, class by class: a figure of densities, one of ratios, and a table.

  python -m experiments.hessian_density runs/sgd runs/sam [--labels=SGD,SAM] [--classes=0,8] [--output=DIR]

A folder holds a spectrum.json and a spectrum.npz, or is a run folder with spectra/*/seed_*/spectrum.json, all of which
are taken, a row of the figure each. Without --classes the figure shows the whole data set, the most frequent and the
least frequent class that were measured, as Figure 2 of Rangwani et al. 2022, and the table all classes. Written are
density.png, ratios.png (both also as .pdf) and table.md, by default into runs/hessian_density.

The kernel's standard deviation is 0.3 % of the range of each spectrum. The published one (--kernel=ghorbani) is at
least 0.003 wide and draws negative eigenvalues beyond lambda_min where a spectrum is narrower than one. In the table,
negative eigenvalues are those below -(--threshold) lambda_max, because most eigenvalues are zero up to rounding.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from imbal_jax.analysis.spectrum_tables import draw_spectra, read_spectrum, table
from imbal_jax.curvature.density import KERNELS
from imbal_jax.errors import InputError, check_number
from imbal_jax.main import guarded


def find_spectra(folders: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """The spectrum folders that folders are or contain, by names that tell them apart.

    Raises:
      InputError: a folder has none, or one is given twice.
    """
    found: list[tuple[tuple[str, ...], pathlib.Path]] = []
    for folder in folders:
        places = [folder] if (folder / "spectrum.json").exists() else _in_run(folder)
        if not places:
            raise InputError(
                f"FOLDER: expected spectrum.json or spectra/*/seed_*/spectrum.json in {folder}, found none"
            )
        found += [(_parts(place), place) for place in places]
    parts = [each for each, _ in found]
    kept = [0, 1, 2]
    if all(len(each) == 3 for each in parts):  # the run, the spectrum and the seed, each where it makes a difference
        kept = [level for level in kept if len({each[level] for each in parts}) > 1] or [0]
    names = [" ".join(part for level, part in enumerate(each) if level in kept) for each in parts]
    if len(set(names)) < len(names):
        names = [str(place) for _, place in found]
    if len(set(names)) < len(names):
        raise InputError(f"FOLDER: expected each folder once, got {names}")
    return dict(zip(names, (place for _, place in found), strict=True))


def _in_run(run: pathlib.Path) -> list[pathlib.Path]:
    """The spectrum folders of a run, by name and seed."""
    places = [path.parent for path in run.glob("spectra/*/seed_*/spectrum.json")]
    return sorted(places, key=lambda place: (place.parent.name, len(place.name), place.name))


def _parts(place: pathlib.Path) -> tuple[str, ...]:
    """Run, spectrum and seed of a folder RUN/spectra/NAME/seed_N; of another, its name."""
    seed = place.resolve()
    name, spectra, run = seed.parent, seed.parent.parent, seed.parent.parent.parent
    return (run.name, name.name, seed.name) if spectra.name == "spectra" else (seed.name,)


def run(arguments: list[str]) -> int:
    """Draws spectra that have been computed; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.hessian_density",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folders", nargs="+", type=pathlib.Path, metavar="FOLDER", help="of runs or of spectra")
    parser.add_argument("--labels", metavar="A,B,...", help="names of the spectra, in their order")
    parser.add_argument("--classes", metavar="0,8,...", help="indices or names of the classes to show")
    parser.add_argument("--kernel", choices=sorted(KERNELS), default="relative", help="(default: relative)")
    parser.add_argument("--threshold", type=float, default=0.01, metavar="X", help="(default: 0.01)")
    parser.add_argument("--shared_x", action="store_true", help="all panels show the same range of eigenvalues")
    parser.add_argument("--probes", action="store_true", help="also draw each probe, thin")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("runs/hessian_density"), metavar="DIR")
    options = parser.parse_args(arguments)
    check_number("--threshold", options.threshold, ">= 0")
    classes = options.classes.split(",") if options.classes else None
    places = find_spectra(options.folders)
    names = options.labels.split(",") if options.labels else list(places)
    if len(set(names)) != len(places):
        raise InputError(f"--labels: expected {len(places)} different names, for {list(places)}, got {names}")
    spectra = {name: read_spectrum(place) for name, place in zip(names, places.values(), strict=True)}
    text = table(spectra, classes, options.threshold)
    written = draw_spectra(
        spectra, options.output, classes, kernel=options.kernel, shared_x=options.shared_x, probes=options.probes
    )
    (options.output / "table.md").write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {options.output}: {', '.join(path.name for path in written)}, table.md")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
