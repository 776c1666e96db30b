"""The launcher killed at random while it trains the study `quick`: the tables do not show it."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from experiments import report
from tests.conftest import ROOT

RUNS, WORKERS, KILLS = 36, 2, 10
LEFT = 4  # runs that are unfinished at a kill, more than there are workers: the launcher is alive
TIMES = ("seconds", "seconds_per_epoch")  # what differs from launch to launch
KINDS = [(number, group) for number in (signal.SIGKILL, signal.SIGTERM) for group in (False, True)]


def command(workdir):
    return [sys.executable, "-m", "experiments.launch", "quick", f"--workers={WORKERS}", f"--workdir={workdir}"]


def results(workdir):
    """The results there are."""
    return sorted((workdir / "quick" / "runs").glob("*/*/seed_*/result.json"))


def kill_at(workdir, finished, delay, number, group):
    """Starts the launcher and kills it some time after so many runs are finished; before all but LEFT are.

    Args:
      workdir: of the launcher.
      finished: runs, at least; less than all but LEFT.
      delay: in seconds, from then on. It is cut short by progress, so that a fast machine does not end the launch.
      number: of the signal.
      group: whether the workers get it too.

    Returns:
      Whether the launcher was alive and died of the signal, at once or after its workers had saved.
    """
    with workdir.with_suffix(".log").open("a") as log:  # to be read where this fails
        # A process group of its own, so that the workers can be killed with it.
        launcher = subprocess.Popen(
            command(workdir), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    while launcher.poll() is None and len(results(workdir)) < finished:
        time.sleep(0.05)
    end = time.monotonic() + delay
    while launcher.poll() is None and time.monotonic() < end and len(results(workdir)) < RUNS - LEFT:
        time.sleep(0.05)
    alive = launcher.poll() is None
    if alive:
        (os.killpg if group else os.kill)(launcher.pid, number)
    # 85: its workers have saved; -SIGTERM: it did not listen yet.
    return launcher.wait(timeout=300) in (85, -number) and alive


def numbers(workdir):
    """What the report writes as CSV, and every record of the runs, but for times."""
    assert report.run(["quick", f"--workdir={workdir}"]) == 0
    names = ("report.csv", "seeds.csv")
    texts = [(workdir / "quick" / "report" / name).read_text(encoding="utf-8") for name in names]
    table, seeds = (list(csv.DictReader(text.splitlines())) for text in texts)
    seeds = [line for line in seeds if line["key"] not in TIMES]
    return (
        table,
        seeds,
        {path.parent.relative_to(workdir).as_posix(): records(path.parent) for path in results(workdir)},
    )


def records(folder):
    """The lines of a seed's training and its result, but for times."""
    texts = [(folder / "result.json").read_text(), *(folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in json.loads(text).items() if key not in TIMES} for text in texts]


@pytest.mark.slow
def test_ten_random_kills_leave_the_table_of_an_undisturbed_launch(tmp_path):
    """SIGKILL and SIGTERM, to the launcher alone and with its workers, at moments spread over the study."""
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    started = time.monotonic()
    subprocess.run(command(undisturbed), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    of_a_run = (time.monotonic() - started) * WORKERS / RUNS  # seconds: what a kill meets is anything from imports on
    draw = random.Random(0)
    kinds = (KINDS * 3)[:KILLS]
    draw.shuffle(kinds)
    # Some follow another before a run is finished: these meet the imports, and the plan.
    moments = sorted(draw.choices(range(RUNS - LEFT), k=KILLS))
    plan = [(finished, draw.uniform(0, of_a_run), *kind) for finished, kind in zip(moments, kinds, strict=True)]
    met = [kill_at(disturbed, *each) for each in plan]
    assert met == [True] * KILLS
    assert len(results(disturbed)) < RUNS
    final = subprocess.run(command(disturbed), cwd=ROOT, capture_output=True, text=True)
    assert final.returncode == 0, final.stdout
    table, seeds, trained = numbers(undisturbed)
    assert len(table) == RUNS  # three metrics of every cell
    assert {line["state"] for line in table} == {"complete"}
    assert len(trained) == RUNS
    assert numbers(disturbed) == (table, seeds, trained)
