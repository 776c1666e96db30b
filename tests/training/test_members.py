"""Runs that differ only in their learning rates, trained together: what each leaves is what it leaves alone."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imbal_jax.build import build_experiment, build_schedule
from imbal_jax.builders import NAMED
from imbal_jax.config import load_config, parse_overrides
from imbal_jax.errors import InputError, NonFiniteLossError
from imbal_jax.reports.records import plain, read
from imbal_jax.resolve import resolve
from imbal_jax.training import loop
from imbal_jax.training.interruption import Interrupted
from imbal_jax.training.members import Run
from imbal_jax.training.programs import compile_programs
from imbal_jax.training.run import restored_run, train, train_together
from imbal_jax.training.step import make_step
from imbal_jax.types import Horizon
from tests.conftest import ROOT
from tests.training.test_step_effects_in_runs import StopAfter

EPOCHS = 3
RATES = (0.05, 0.2)
TINY = [
    "--config.seeds=0,1",
    "--config.model.name=mlp",
    "--config.model.hidden=()",  # without a kink, at which rounding could be the beginning of another path
    "--config.profile.name=natural",
    f"--config.training.epochs={EPOCHS}",
    "--config.training.checkpoint_every_epochs=1",
    "--config.training.steps_per_call=20",
    "--config.training.seeds_together=yes",
    "--config.record.figures=false",
    "--config.record.tensorboard=false",
]
SGD = ["--config.step_rule.momentum=0.9", "--config.step_rule.weight_decay=0.01"]
ADAMW = ["--config.step_rule.name=adamw", "--config.step_rule.weight_decay=0.1"]
MULTI_STEP = ["--config.schedule.name=multi_step", "--config.schedule.boundaries=(1,)"]
MULTI_STEP += ["--config.schedule.factors=(0.1,)"]
WARM = ["--config.schedule.name=constant", "--config.schedule.warmup_epochs=2"]
# From the second epoch on the largest learning rates diverge.
STEEP = ["--config.schedule.name=multi_step", "--config.schedule.boundaries=(1,)", "--config.schedule.factors=(100,)"]


def config_of(rate, *extra):
    """A tiny run on digits with a learning rate."""
    overrides = parse_overrides([*TINY, *extra, f"--config.schedule.learning_rate={rate}"])
    return resolve(load_config(f"{ROOT}/configs/digits.py:baseline"), overrides)


def runs_of(folder, *extra, rates=RATES):
    """The experiment of the first run, and all runs, in folders named after their learning rates."""
    configs = [config_of(rate, *extra) for rate in rates]
    experiment = build_experiment(configs[0])
    runs = [
        Run(plain(config.to_dict()), folder / str(rate), build_schedule(config, experiment.horizon))
        for rate, config in zip(rates, configs, strict=True)
    ]
    return experiment, runs


def train_alone(folder, rate, *extra):
    """Trains a run by itself."""
    config = config_of(rate, *extra)
    return train(build_experiment(config), plain(config.to_dict()), folder / str(rate))


def assert_same_run(one, other, *extra):
    """Compares what two run folders hold, but for times and rounding."""
    assert (one / "config.json").read_text() == (other / "config.json").read_text()
    files = [sorted(path.relative_to(each).as_posix() for path in each.rglob("*.json*")) for each in (one, other)]
    assert files[0] == files[1]
    programs = compile_programs(build_experiment(config_of(RATES[0], *extra)), stacked=False)
    for seed in (0, 1):
        records = [read(each / f"seed_{seed}" / "metrics.jsonl") for each in (one, other)]
        results = [[json.loads((each / f"seed_{seed}" / "result.json").read_text())] for each in (one, other)]
        assert len(records[0]) == EPOCHS
        for left, right in zip(*(a + b for a, b in zip(records, results, strict=True)), strict=True):
            assert left.keys() == right.keys()
            for key in left.keys() - {"seconds", "seconds_per_epoch"}:
                if left[key] != right[key]:
                    np.testing.assert_allclose(left[key], right[key], rtol=1e-4, err_msg=key)
        states = [restored_run(programs, each, seed) for each in (one, other)]
        chex.assert_trees_all_close(states[0].state, states[1].state, rtol=1e-3, atol=1e-5)
        chex.assert_trees_all_close(states[0].best, states[1].best, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        SGD,
        pytest.param([*SGD, *MULTI_STEP], marks=pytest.mark.slow),
        [*ADAMW, *WARM],
    ],
    ids=["cosine", "multi_step", "adamw"],
)
def test_each_run_is_as_if_trained_alone(tmp_path, options):
    rates = RATES if options[0] == SGD[0] else (0.002, 0.01)
    experiment, runs = runs_of(tmp_path / "together", *options, rates=rates)
    summaries = train_together(experiment, runs)
    assert [summary["seeds"] for summary in summaries] == [[0, 1]] * 2
    for run, rate in zip(runs, rates, strict=True):
        train_alone(tmp_path / "alone", rate, *options)
        assert_same_run(run.workdir, tmp_path / "alone" / str(rate), *options)


def test_all_runs_and_seeds_are_in_one_program(tmp_path, monkeypatch):
    compiled, groups = [], []
    real_step, real_fit = make_step, loop.fit

    def counted(*parts):
        step = real_step(*parts)

        def traced(*arguments):
            compiled.append(arguments[0].step.shape)
            return step(*arguments)

        return traced

    def fitted(experiment, programs, members, *rest):
        groups.append([(member.run, member.seed) for member in members])
        return real_fit(experiment, programs, members, *rest)

    monkeypatch.setattr("imbal_jax.training.programs.make_step", counted)
    monkeypatch.setattr("imbal_jax.training.run.fit", fitted)
    train_together(*runs_of(tmp_path, *SGD))
    assert groups == [[(run, seed) for run in range(2) for seed in (0, 1)]]
    assert len(compiled) == 1


def test_a_run_that_diverges_leaves_the_others_alone(tmp_path):
    rates = (0.001, 30.0, 0.0005)
    experiment, runs = runs_of(tmp_path / "together", *SGD, *STEEP, rates=rates)
    outcomes = train_together(experiment, runs)
    assert isinstance(outcomes[1], NonFiniteLossError)
    assert not list(runs[1].workdir.rglob("result.json"))
    with pytest.raises(NonFiniteLossError):
        train_alone(tmp_path / "alone", rates[1], *SGD, *STEEP)
    assert isinstance(outcomes[0], dict)
    train_alone(tmp_path / "alone", rates[2], *SGD, *STEEP)
    assert_same_run(runs[2].workdir, tmp_path / "alone" / str(rates[2]), *SGD, *STEEP)
    lost = [read(each / "seed_0" / "metrics.jsonl") for each in (runs[1].workdir, tmp_path / "alone" / str(rates[1]))]
    assert len(lost[0]) == len(lost[1]) == 1


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
def test_runs_that_are_stopped_continue_in_any_grouping(tmp_path, apart):
    train_together(*runs_of(tmp_path / "whole", *SGD))
    experiment, runs = runs_of(tmp_path / "stopped", *SGD)
    with pytest.raises(Interrupted):
        train_together(experiment, runs, StopAfter(5))
    assert not list((tmp_path / "stopped").rglob("result.json"))
    if apart:
        for rate in RATES:
            train_alone(tmp_path / "stopped", rate, *SGD)
    else:
        train_together(experiment, runs)
    for run, rate in zip(runs, RATES, strict=True):
        assert_same_run(run.workdir, tmp_path / "whole" / str(rate), *SGD)


def test_the_last_seed_that_is_left_keeps_its_learning_rate(tmp_path):
    options = [*SGD, "--config.seeds=1"]
    train_alone(tmp_path / "together", RATES[0], *options)
    experiment, runs = runs_of(tmp_path / "together", *options)
    train_together(experiment, runs)
    train_alone(tmp_path / "alone", RATES[1], *options)
    records = [read(tmp_path / name / str(RATES[1]) / "seed_1" / "metrics.jsonl") for name in ("together", "alone")]
    for left, right in zip(*records, strict=True):
        np.testing.assert_allclose(left["train/loss"], right["train/loss"], rtol=1e-5)
        assert left["learning_rate"] == right["learning_rate"]


def test_runs_that_differ_in_something_else_are_refused(tmp_path):
    experiment, runs = runs_of(tmp_path)
    other = runs_of(tmp_path, "--config.step_rule.momentum=0.5")[1]
    with pytest.raises(InputError, match=r"learning rates only: step_rule\.momentum: stored .*, given 0\.5"):
        train_together(experiment, [runs[0], other[1]])


@pytest.mark.parametrize("name", NAMED["schedule"])
def test_every_schedule_is_proportional_to_its_learning_rate(name):
    options = {"multi_step": {"boundaries": (2,), "factors": (0.3,)}}.get(name, {})
    horizon = Horizon(steps_per_epoch=4, epochs=5)
    one, other = (
        jax.vmap(NAMED["schedule"][name](horizon, learning_rate=rate, warmup_epochs=1, **options))(jnp.arange(20))
        for rate in (0.1, 0.7)
    )
    np.testing.assert_allclose(7 * one, other, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMED["step_rule"])
def test_every_update_is_proportional_to_the_learning_rate(name):
    params = {"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}
    rules = [NAMED["step_rule"][name](lambda count, r=rate: r, weight_decay=0.3) for rate in (0.1, 0.7)]
    states = [rule.init(params) for rule in rules]
    for i in range(3):
        direction = {"w": jnp.cos(i + params["w"])}
        (one, states[0]), (other, states[1]) = (
            rule.update(direction, state, params) for rule, state in zip(rules, states, strict=True)
        )
        chex.assert_trees_all_close(jax.tree.map(lambda update: 7 * update, one), other, rtol=1e-5)
