"""Trains the cells of a study with every seed, on this machine or on a SLURM cluster.

  python -m experiments.launch quick --workdir=runs
  python -m experiments.launch quick --only=method=baseline,ief --seeds=0 --config.training.epochs=2 --workdir=runs/try
  python -m experiments.launch my_study.py --workdir=runs --estimate
  python -m experiments.launch quick --executor=slurm --slurm=partition=gpu --slurm=gpus_per_node=1 --workers=8

The runs lie in DIR/STUDY/runs. Finished ones are skipped and interrupted ones resumed, so the same command again goes
on after a kill; two launchers on one folder share the work. Failures are shown at once with the end of their log; what
may have been chance (a crash, want of memory) is tried again, bad input and a non-finite loss are not. Ctrl-C or
SIGTERM lets every worker save first. Without SLURM, cells that differ only in their learning rates may be trained by
one process, if that is measured not to be slower.

exit status: 0 all finished, 1 something failed, 2 bad input, 85 interrupted: the same command continues
"""

import sys
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict
from rich.console import Console

from experiments.launching import devices, local, slurm
from experiments.launching.estimate import tell_estimate
from experiments.launching.grouping import decide, decide_rates
from experiments.launching.jobs import Job, diverged_run
from experiments.launching.options import Options, parse
from experiments.launching.plan import Plan, Together, check_stored, make_plan, resolved_cells
from experiments.launching.pool import DIVERGED, FAILED, STOPPED, Result
from experiments.launching.rates import with_groups
from experiments.launching.status import status_table, write_status
from experiments.winners import write_winners
from imbal_jax.errors import InputError
from imbal_jax.main import guarded
from imbal_jax.training.interruption import Interrupted, StopRequest


def run(arguments: list[str]) -> int:
    """Plans and trains; returns the exit status.

    Raises:
      InputError: see `parse`, `resolved_cells` and `check_stored`; or a measurement failed.
      Interrupted: a stop was requested; all workers have saved.
    """
    options = parse(arguments, __doc__)
    stop = StopRequest().install()
    gpus, cpus = devices.visible_gpus(), devices.usable_cpus()
    slots = devices.divide(options.workers or devices.default_workers(gpus, cpus), gpus, cpus)
    try:
        plan, known = _plan(options, slots)
        if options.estimate and not options.dry_run:
            tell_estimate(options.paths, plan.jobs, slots)
    except InputError:
        if stop.requested:  # Ctrl-C reaches what is being measured too
            raise Interrupted("stopped before the first run; the same command continues") from None
        raise
    if options.dry_run or options.estimate:
        return 0
    status = _finish(options, plan, [*known, *_train(options, plan, slots, stop)])
    if options.study.search is not None and options.whole and status == 0:
        write_winners(options.study, options.paths, options.seeds)
    return status


def _plan(options: Options, slots: Sequence[devices.Slot]) -> tuple[Plan, list[Result]]:
    """Checks everything, decides which seeds and cells are trained together and shows what there is to do.

    Returns:
      The plan, and the results of a search that are known to have diverged.
    """
    configs = resolved_cells(options.study, options.seeds, options.overrides)
    check_stored(options.paths, configs)
    to_group: list[str] = []

    def ask_later(cell: str) -> Together:
        to_group.append(cell)
        return Together(False, "decided when the study is launched")

    plan = make_plan(options.paths, configs, options.seeds, ask_later)
    groups: dict[str, Together] = {}
    if not options.dry_run:
        groups = _group(options, configs, to_group, slots[0])
        plan = make_plan(options.paths, configs, options.seeds, lambda cell: groups[cell])
    plan, known = _without_diverged(options, plan)
    _show(options, plan, groups)
    if not options.dry_run and options.executor == "local":
        plan = _group_rates(options, configs, plan, slots)
    return plan, known


def _train(options: Options, plan: Plan, slots: list[devices.Slot], stop: StopRequest) -> list[Result]:
    """Trains the jobs of a plan where the options say."""
    given = (options.retries, stop)
    may_diverge = options.study.search is not None
    if options.executor == "slurm":
        where = (options.paths, plan.jobs, options.workers, options.slurm)
        return slurm.run_jobs(*where, *given, may_diverge=may_diverge, tell=_tell)
    return local.run_jobs(options.paths, plan.jobs, slots, *given, may_diverge=may_diverge, tell=_tell)


def _group(
    options: Options, configs: Mapping[str, ConfigDict], cells: list[str], slot: devices.Slot
) -> dict[str, Together]:
    """Decides which cells' seeds are trained together; for a cluster, whose nodes are others, by the config alone."""
    if options.executor == "local":
        return decide(options.paths, configs, cells, options.seeds, slot)
    why = "nothing is measured for a cluster; --config.training.seeds_together=yes trains them together"
    return {cell: Together(configs[cell].training.seeds_together == "yes", why) for cell in cells}


def _group_rates(
    options: Options, configs: Mapping[str, ConfigDict], plan: Plan, slots: Sequence[devices.Slot]
) -> Plan:
    """Decides which cells that differ only in their learning rates one process trains together, and tells it."""

    def decide_together(jobs: Sequence[Job]) -> Together:
        at_once = len(jobs[0].seeds)
        return decide_rates(options.paths, configs, jobs[0].cell, at_once * len(jobs), at_once, slots[0])

    jobs, decided = with_groups(options.paths, plan.jobs, len(slots), decide_together)
    reasons: dict[Together, list[Sequence[Job]]] = {}
    for together, decision in decided:
        reasons.setdefault(decision, []).append(together)
    for decision, groups in reasons.items():
        how = "together (vmap)" if decision.together else "apart"
        rates = ", ".join(f"{job.config['schedule']['learning_rate']:g}" for job in groups[0])
        what = f"{sum(map(len, groups))} run(s), such as {rates} for {groups[0][0].name}"
        _tell(f"learning rates {how}, {what}: {decision.why}")
    return plan._replace(jobs=jobs)


def _without_diverged(options: Options, plan: Plan) -> tuple[Plan, list[Result]]:
    """A search's plan without what is known to diverge, and these results; other studies try again."""
    if options.study.search is None:
        return plan, []

    def known(job: Job) -> bool:
        return any(diverged_run(options.paths, job.cell, seed) for seed in job.seeds)

    kept = tuple(job for job in plan.jobs if not known(job))
    return plan._replace(jobs=kept), [Result(job, DIVERGED) for job in plan.jobs if known(job)]


def _tell(line: str) -> None:
    """Prints at once, also into a file."""
    print(line, flush=True)


def _show(options: Options, plan: Plan, groups: Mapping[str, Together]) -> None:
    """Prints what there is to do, and how the seeds of a cell are grouped."""
    done = sum(map(len, plan.finished.values()))
    total = len(plan.finished) * len(options.seeds)
    _tell(f"{options.study.name}: {len(plan.finished)} cells x {len(options.seeds)} seeds: {done} of {total} finished")
    reasons: dict[Together, list[str]] = {}
    for cell, group in groups.items():
        reasons.setdefault(group, []).append(cell)
    for group, cells in reasons.items():
        how = "together (vmap)" if group.together else "apart"
        _tell(f"seeds {how}, {len(cells)} cell(s): {group.why}")
    if options.dry_run:
        for job in plan.jobs:
            _tell(f"{job.state}: {job.name}")


def _finish(options: Options, plan: Plan, results: list[Result]) -> int:
    """Shows and writes the status; returns the exit status.

    Raises:
      Interrupted: something was stopped.
    """
    write_status(options.paths, plan, results)
    Console().print(status_table(f"{options.study.name} in {options.paths.root}", plan, results))
    states = [result.state for result in results]
    if STOPPED in states:
        raise Interrupted(f"{states.count(STOPPED)} run(s) are not finished; the same command continues")
    return 1 if FAILED in states else 0


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
