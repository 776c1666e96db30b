"""Progress in a log."""

import re

from imbal_jax.reports.progress import Progress


def lines_of(capsys, total, epochs):
    """The lines that the given (seed, epoch) pairs leave in a log."""
    with Progress(total, "study") as progress:
        for seed, epoch in epochs:
            record = {"epoch": epoch, "train/loss": 0.5, "validation/balanced_accuracy": 0.25}
            progress.epoch({(0, seed): record})
    return capsys.readouterr().err.splitlines()


def test_short_runs_tell_every_epoch(capsys):
    lines = lines_of(capsys, 4, [(0, 1), (0, 2), (1, 1), (1, 2)])
    assert lines[0] == "study: 1/4 epochs, seed 0, epoch 1, loss 0.5, validation balanced accuracy 0.250"
    assert [line.split(",")[0] for line in lines] == [f"study: {done}/4 epochs" for done in (1, 2, 3, 4)]


def test_long_runs_tell_twenty_lines(capsys):
    assert len(lines_of(capsys, 200, [(0, epoch) for epoch in range(1, 201)])) == 20


def test_a_continued_run_counts_what_was_done_before(capsys):
    assert lines_of(capsys, 10, [(3, 8), (3, 9), (3, 10)])[-1].startswith("study: 10/10 epochs")


def test_seeds_together_count_each(capsys):
    with Progress(4, "study") as progress:
        progress.epoch({(0, seed): {"epoch": 1, "train/loss": 1.0} for seed in (0, 1)})
    assert capsys.readouterr().err.startswith("study: 2/4 epochs, seed 0 of 2, epoch 1, loss 1")


def test_a_terminal_of_80_columns_shows_the_bar_and_the_count(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    with Progress(120, "cifar10") as progress:
        record = {"epoch": 40, "train/loss": 0.0123456, "validation/balanced_accuracy": 0.934}
        progress.epoch({(0, 0): record})
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert "cifar10" in shown
    assert "40/120 epochs" in shown
    assert "seed 0, loss 0.0123, balanced 0.93" in shown
