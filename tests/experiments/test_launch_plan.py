"""What the launcher plans: from a study and what lies in its folders to jobs, devices and times."""

import pathlib

import pytest

from experiments.launching.devices import default_workers, divide, visible_gpus
from experiments.launching.estimate import elapsed, job_seconds
from experiments.launching.grouping import judge
from experiments.launching.jobs import INTERRUPTED, PENDING, Paths, outcome_file, read_outcome
from experiments.launching.options import parse
from experiments.launching.plan import Together, check_stored, make_plan, resolved_cells, with_seeds
from experiments.seeds import finished_seeds, parse_seeds, run_name, seeds_in
from experiments.selection import parse_only
from experiments.study import Axis, Study, load_study
from imbal_jax.errors import InputError
from imbal_jax.reports.records import plain, write_json

APART, TOGETHER = Together(False, ""), Together(True, "")
STUDY = Study("toy", "configs/digits.py:{method}", (Axis("method", ("baseline", "ief")),), ())


@pytest.fixture(scope="module")
def configs():
    return resolved_cells(STUDY, (0, 1, 2), {})


def leave(paths, configs, seeds, finished, *, summary=False, cell="method=ief"):
    """Makes a run folder."""
    folder = paths.runs / cell / run_name(seeds)
    write_json(folder / "config.json", with_seeds(plain(configs[cell].to_dict()), seeds, "auto"))
    for seed in finished:
        write_json(folder / f"seed_{seed}" / "result.json", {})
    if summary:
        write_json(folder / "summary.json", {})


def planned(paths, configs, group=APART, seeds=(0, 1, 2)):
    plan = make_plan(paths, configs, seeds, lambda cell: group)
    return plan, [(job.cell.removeprefix("method="), job.seeds, job.state) for job in plan.jobs]


def test_an_empty_folder_is_all_to_do_seed_by_seed(tmp_path, configs):
    plan, jobs = planned(Paths(tmp_path), configs)
    assert jobs == [(cell, (seed,), PENDING) for seed in (0, 1, 2) for cell in ("baseline", "ief")]
    assert plan.jobs[0].config["seeds"] == "0"
    assert plan.finished == {"method=baseline": (), "method=ief": ()}


def test_seeds_together_are_one_run(tmp_path, configs):
    plan, jobs = planned(Paths(tmp_path), configs, TOGETHER)
    assert jobs == [("baseline", (0, 1, 2), PENDING), ("ief", (0, 1, 2), PENDING)]
    assert plan.jobs[0].config["training"]["seeds_together"] == "yes"


def test_finished_seeds_are_left_out_and_begun_runs_resumed_as_they_are(tmp_path, configs):
    paths = Paths(tmp_path)
    leave(paths, configs, (0,), (0,), summary=True)
    leave(paths, configs, (1, 2), ())
    plan, jobs = planned(paths, configs, APART)
    assert jobs[0] == ("ief", (1, 2), INTERRUPTED)
    assert [job for job in jobs if job[0] == "ief"] == jobs[:1]
    assert plan.finished["method=ief"] == (0,)


def test_a_run_killed_before_its_summary_is_completed(tmp_path, configs):
    leave(Paths(tmp_path), configs, (0, 1, 2), (0, 1, 2))
    assert planned(Paths(tmp_path), configs)[1][0] == ("ief", (0, 1, 2), INTERRUPTED)
    leave(Paths(tmp_path), configs, (0, 1, 2), (), summary=True)
    assert all(cell != "ief" for cell, _, _ in planned(Paths(tmp_path), configs)[1])


def test_a_begun_run_of_more_seeds_than_asked_for_is_not_resumed(tmp_path, configs):
    leave(Paths(tmp_path), configs, (0, 1, 2), ())
    assert ("ief", (0,), PENDING) in planned(Paths(tmp_path), configs, seeds=(0,))[1]
    # Nor when one of its seeds was then finished in another run: that would be trained twice.
    leave(Paths(tmp_path), configs, (0,), (0,), summary=True)
    assert [job[1:] for job in planned(Paths(tmp_path), configs)[1] if job[0] == "ief"] == [
        ((1,), PENDING),
        ((2,), PENDING),
    ]


def test_another_config_in_the_folder_is_refused_and_another_grouping_is_not(tmp_path, configs):
    paths = Paths(tmp_path)
    leave(paths, configs, (0, 1), (0, 1), summary=True)
    check_stored(paths, configs)
    changed = resolved_cells(STUDY, (0, 1, 2), {"training.epochs": "7"})
    with pytest.raises(InputError, match=r"method=ief.*training\.epochs: stored 40, given 7"):
        check_stored(paths, changed)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.epochs", "0", r"method=baseline: training\.epochs: expected a number >= 1, got 0"),
        ("training.epoch", "3", r"method=baseline: config\.training: .*did you mean 'epochs'"),
        ("training.epochs", "many", r"method=baseline: config\.training\.epochs: expected int, got 'many'"),
    ],
)
def test_every_config_is_checked_before_anything_starts(key, value, message):
    with pytest.raises(InputError, match=message):
        resolved_cells(STUDY, (0,), {key: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quikc"], "no 'quikc'; did you mean 'quick'"),
        (["nowhere/study.py"], "no such file"),
        (["quick", "--seeds=0,0"], "--seeds: expected different whole numbers"),
        (["quick", "--seeds=4294967296"], "--seeds: expected numbers in 0..2\\^32-1, got '4294967296'"),
        (["quick", "--workers=0"], "--workers: expected a whole number >= 1, got 0"),
        (["quick", "--only=alpha=3"], "--only=alpha: no '3'"),
        (["quick", "--only=aplha=1"], "--only: no 'aplha'; did you mean 'alpha'"),
        (["quick", "--only=alpha"], "--only: expected AXIS=VALUE,VALUE"),
        (["quick", "--config.seeds=1"], "--config.seeds: expected --seeds=1 in its place"),
        (["quick", "--slurm=time=5"], "--slurm: expected --executor=slurm beside it, got local"),
        (["quick", "--executor=slurm", "--slurm=time"], "--slurm: expected KEY=VALUE, got 'time'"),
        (["quick", "--dryrun"], "unknown argument '--dryrun'"),
        (["quick", "--dry-run", "--estimate"], "--estimate: expected it without --dry-run"),
        (["quick", "--workdir="], "--workdir: expected a folder, got ''"),
        (["quick", f"--workdir={__file__}"], "--workdir: expected a folder, got .*test_launch_plan.py"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        parse(arguments, None)


def test_only_and_seeds_are_read():
    assert parse_only(["a=1,2", "b=x"]) == {"a": ("1", "2"), "b": ("x",)}
    assert parse_seeds("3,1") == (3, 1)
    assert [seeds_in(name) for name in ("seeds_0_12", "seeds_x", "other")] == [(0, 12), None, None]


def test_many_seeds_still_name_a_folder():
    many = (3, *range(10, 200), 7)
    assert run_name(many) == "seeds_3_10-199_7"
    assert seeds_in(run_name(many)) == many
    assert run_name(range(5)) == "seeds_0_1_2_3_4"
    with pytest.raises(InputError, match=r"^--seeds: expected fewer, or consecutive ones, .* got 100$"):
        run_name(range(0, 200, 2))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("seed_0/result.json", "", "seed_0/result.json is damaged"),
        ("seed_0/result.json", "[1]", "seed_0/result.json is damaged"),
        ("config.json", "{}", "config.json is no resolved config: config: expected the sections"),
        ("config.json", "[]", "config.json is no resolved config: "),
    ],
)
def test_a_damaged_file_of_a_run_is_told(tmp_path, configs, name, content, message):
    leave(Paths(tmp_path), configs, (0,), (0,))
    (tmp_path / "runs" / "method=ief" / "seeds_0" / name).write_text(content)
    with pytest.raises(InputError, match=f"^--workdir: .*{message}"):
        check_stored(Paths(tmp_path), configs)


@pytest.mark.parametrize("content", ["", "[[", "[1]"])
def test_damaged_notes_of_the_launcher_are_as_good_as_none(tmp_path, content):
    file = outcome_file(Paths(tmp_path), "cell", (0,))
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert read_outcome(Paths(tmp_path), "cell", (0,)) is None


def test_of_two_runs_with_the_same_seed_the_first_by_name_counts(tmp_path, configs):
    paths = Paths(tmp_path)
    for seeds, finished in (((1, 2), (1, 2)), ((0, 1), (0, 1)), ((3,), ())):
        leave(paths, configs, seeds, finished)
    (paths.runs / "method=ief" / "copy" / "seed_7").mkdir(parents=True)  # no name of ours
    write_json(paths.runs / "method=ief" / "copy" / "seed_7" / "result.json", {})
    found = {seed: run.name for seed, run in finished_seeds(paths.runs / "method=ief").items()}
    assert list(found.items()) == [(0, "seeds_0_1"), (1, "seeds_0_1"), (2, "seeds_1_2")]


def test_a_users_file_is_a_study_and_finds_its_config_beside_it(tmp_path):
    (tmp_path / "config.py").write_text("")
    text = "from experiments.study import *\ndef get_study(workdir):\n  "
    text += "return Study('mine', 'config.py:{a}', (Axis('a', (workdir.name,)),), ())\n"
    (tmp_path / "mine.py").write_text(text)
    study = load_study(str(tmp_path / "mine.py"), pathlib.Path("somewhere"))
    assert study.config == f"{tmp_path}/config.py:{{a}}"
    assert list(study.cells()) == [{"a": "somewhere"}]
    (tmp_path / "mine.py").write_text("def get_study():\n  return 3\n")
    with pytest.raises(InputError, match=r"expected a Study from get_study of .*, got int"):
        load_study(str(tmp_path / "mine.py"))


def test_cores_are_divided_among_workers():
    assert [slot.cpus for slot in divide(2, (), range(5))] == [(0, 1), (2, 3, 4)]
    assert [slot.cpus for slot in divide(3, (), (4, 7))] == [(4,), (7,), (4,)]
    assert [default_workers((), range(n)) for n in (1, 2, 3, 16)] == [1, 2, 2, 4]


def test_gpus_are_divided_among_workers():
    slots = divide(3, ("2", "5"), range(8))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["2", "5", "2"]
    shares = [slot.environment.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for slot in slots]
    assert shares == ["0.45", None, "0.45"]
    assert [slot.cpus for slot in slots] == [(0, 1, 2, 3), (4, 5, 6, 7), (0, 1, 2, 3)]
    assert [slot.cpus for slot in divide(1, ("2", "5"), range(8))] == [tuple(range(8))]
    assert default_workers(("0", "1"), range(64)) == 2
    assert visible_gpus({"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "0"}) == ()


def measured(apart, together):
    return {"streamed": False, "apart": {"seconds": apart}, "together": together and {"seconds": together}}


def test_seeds_are_together_where_that_is_faster_and_fits():
    assert judge(measured(0.01, 0.012), 3).together
    assert not judge(measured(0.01, 0.0299), 3).together  # too little gain
    assert judge(measured(0.01, None), 3) == Together(False, "the memory does not hold 3 seeds")
    on_cpu = {"backend": "cpu", "streamed": False}
    assert judge({**on_cpu, "convolutions": False}, 3).together
    assert not judge({**on_cpu, "convolutions": True}, 3).together
    assert not judge({**on_cpu, "convolutions": False, "streamed": True}, 3).together


def test_learning_rates_are_together_where_no_step_is_lost():
    assert not judge(measured(0.01, 0.012), 6, 6).together  # six at a time are no slower than the six together
    assert judge(measured(0.01, 0.021), 6, 3) == Together(
        True,
        "a step of 6 seeds takes 21 ms together, 20 ms 3 at a time; apart, each cell starts and compiles for itself",
    )
    assert not judge(measured(0.01, 0.03), 6, 3).together


def test_the_estimate_adds_steps_epochs_and_what_is_done_once():
    timed = {"startup": 5.0, "first": 9.0, "again": 3.0, "epochs": 4, "steps": 10, "step": 0.1, "epoch": 0.5}
    # Beside the short training: 20 * 6 - 10 * 4 steps and 6 - 4 epochs.
    assert job_seconds(timed, 20, 6, compiled=False) == pytest.approx(5 + 9 + 80 * 0.1 + 2 * 0.5)
    assert job_seconds(timed, 20, 6, compiled=True) == pytest.approx(5 + 3 + 80 * 0.1 + 2 * 0.5)
    assert elapsed([3.0, 1.0, 1.0, 2.0], workers=2) == 4.0
