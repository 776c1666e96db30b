"""The comparison of spectra: which folders it takes, and its command line."""

import pytest

from experiments import hessian_density
from imbal_jax.analysis import spectrum_tables
from imbal_jax.errors import InputError
from imbal_jax.main import EXIT_INPUT, guarded
from tests.analysis.toy_spectra import write


@pytest.fixture
def spectra(tmp_path):
    """Two runs with a spectrum each."""
    write(tmp_path / "sgd" / "spectra" / "fixed" / "seed_0")
    write(tmp_path / "sam" / "spectra" / "fixed" / "seed_0", scale=0.1)
    return [tmp_path / "sgd", tmp_path / "sam"]


def names_of(*folders):
    return list(hessian_density.find_spectra(folders))


def test_spectra_are_found_and_named_by_what_differs(tmp_path, spectra):
    assert names_of(*spectra) == ["sgd", "sam"]
    assert names_of(spectra[0]) == ["sgd"]
    assert names_of(spectra[0] / "spectra" / "fixed" / "seed_0") == ["sgd"]
    for seed in (10, 2):
        write(spectra[0] / "spectra" / "fixed" / f"seed_{seed}")
    assert names_of(spectra[0]) == ["seed_0", "seed_2", "seed_10"]
    assert names_of(*spectra) == ["sgd seed_0", "sgd seed_2", "sgd seed_10", "sam seed_0"]
    write(spectra[1] / "spectra" / "published" / "seed_0")
    assert names_of(spectra[1]) == ["fixed", "published"]
    assert names_of(spectra[1], write(tmp_path / "loose")) == ["sam fixed seed_0", "sam published seed_0", "loose"]
    same = [write(tmp_path / parent / "run" / "spectra" / "fixed" / "seed_0") for parent in "ab"]
    assert names_of(*same) == [str(folder) for folder in same]


def test_the_command_writes_figures_and_table(tmp_path, spectra, capsys, monkeypatch):
    drawn = {}
    density_figure = spectrum_tables.density_figure

    def spy(rows, **options):
        drawn.update(rows)
        return density_figure(rows, **options)

    monkeypatch.setattr(spectrum_tables, "density_figure", spy)
    arguments = [*map(str, spectra), "--labels=SGD,SAM", "--probes", f"--output={tmp_path}/new/out"]
    assert guarded(hessian_density.run, arguments) == 0
    printed = capsys.readouterr().out
    for name in ("density", "ratios"):
        assert f"{name}.png, {name}.pdf" in printed
        assert (tmp_path / "new" / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "new" / "out" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "new" / "out" / "table.md").read_text(encoding="utf-8") in printed
    titles = [[panel.title.split(":")[0] for panel in row] for row in drawn.values()]
    assert list(drawn) == ["SGD", "SAM"] and titles == [["all classes", "dog", "eel"]] * 2  # head and tail


def test_a_spectrum_of_the_whole_set_alone_has_no_ratios(tmp_path):
    folder = write(tmp_path / "run", indices=(None,))
    assert guarded(hessian_density.run, [str(folder), f"--output={tmp_path}/out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["density.pdf", "density.png", "table.md"]


def test_what_is_wrong_is_told_in_one_line(tmp_path, spectra, capsys):
    damaged = write(tmp_path / "damaged")
    (damaged / "spectrum.npz").write_bytes(b"PK")
    skipping = write(tmp_path / "skipping", indices=(None, 0, 1))
    sgd = str(spectra[0])
    for arguments, message in (
        ([str(tmp_path / "no")], f"spectra/*/seed_*/spectrum.json in {tmp_path}/no, found none"),
        ([str(damaged)], f"FOLDER: cannot read spectrum.json and spectrum.npz in {damaged}: "),
        ([sgd, sgd], "FOLDER: expected each folder once, got"),
        ([sgd, "--labels=a,b"], "--labels: expected 1 different names, for ['sgd'], got ['a', 'b']"),
        ([sgd, "--threshold=-1"], "--threshold: expected a number >= 0, got -1.0"),
        ([sgd, "--classes=5"], "measured in sgd: 0 (cat), 1 (dog), 2 (eel); got '5'"),
        ([str(skipping), "--classes=eel"], "0 (cat), 1 (dog); got 'eel'; it was skipped: no example"),
    ):
        assert guarded(hessian_density.run, [*arguments, f"--output={tmp_path}/out"]) == EXIT_INPUT
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_given_twice_is_refused(spectra):
    with pytest.raises(InputError, match=r"^FOLDER: expected each folder once"):
        hessian_density.find_spectra([spectra[0], spectra[0]])
