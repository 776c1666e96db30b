"""Jobs that differ only in their learning rates, as those of a search: which of them one process trains together."""

import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

from experiments.launching.jobs import Job, Paths, run_folder
from experiments.launching.plan import Together
from imbal_jax.training.folders import seed_folder
from imbal_jax.training.members import without_rate


def with_groups(
    paths: Paths, jobs: Sequence[Job], workers: int, decide: Callable[[Sequence[Job]], Together]
) -> tuple[tuple[Job, ...], list[tuple[tuple[Job, ...], Together]]]:
    """Puts jobs into groups, no larger than leaves work for all workers.

    Args:
      paths: of the study.
      jobs: to be trained.
      workers: how many processes train at once.
      decide: whether some jobs that could be trained together are.

    Returns:
      The jobs in their order, those trained together with the same `group`; and what was decided for each group.
    """
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        if len(job.seeds) == 1 or job.config["training"]["seeds_together"] == "yes":
            alike.setdefault(_kind(paths, job), []).append(job)
    candidates = {kind: many for kind, many in alike.items() if len(many) > 1}
    most = max(1, -(-sum(map(len, candidates.values())) // workers))
    groups, decided = dict[str, str](), []
    for kind, many in candidates.items():
        for i, part in enumerate(_parts(many, most)):
            if len(part) > 1:
                decided.append((part, decide(part)))
                groups |= {job.name: f"{kind}_{i}" for job in part if decided[-1][1].together}
    return tuple(job._replace(group=groups.get(job.name, "")) for job in jobs), decided


def _kind(paths: Paths, job: Job) -> str:
    """What jobs share that can be trained together: their configs but for the learning rate, and how far they are."""
    steps = common_step(run_folder(paths, job), job.seeds)
    return hashlib.blake2b(json.dumps([without_rate(job.config), steps]).encode(), digest_size=8).hexdigest()


def common_step(run: pathlib.Path, seeds: Sequence[int]) -> int:
    """The newest step that every seed of a run has a checkpoint of; 0 where there is none."""
    folders = [seed_folder(run, seed) / "checkpoints" for seed in seeds]
    steps = [{int(path.name) for path in folder.glob("*") if path.name.isdecimal()} for folder in folders]
    return max(set.intersection(*steps), default=0)


def _parts(jobs: Sequence[Job], most: int) -> list[tuple[Job, ...]]:
    """Jobs in as few parts of at most a number as there can be, of even size."""
    count = -(-len(jobs) // most)
    return [tuple(jobs[i::count]) for i in range(count)]
