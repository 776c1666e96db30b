"""Every fault of a set of recordings at once, before anything is trained on them."""

import hashlib
import os
import pathlib
from collections.abc import Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from imbal_jax.data.audio import MIN_SAMPLES, check_samples, read_recording
from imbal_jax.errors import InputError, check_number

KINDS = ("unreadable", "bad samples", "too short", "silent", "clipped", "duplicate")

_SAMPLE_RATE = 16_000  # at which MIN_SAMPLES counts
# What counts as full scale: 8-bit and companded recordings reach 0.98 to 0.99 at most.
_FULL_SCALE = 0.98


class Fault(NamedTuple):
    """One fault of one recording."""

    path: pathlib.Path
    kind: str  # one of KINDS
    detail: str


class Durations(NamedTuple):
    """Of the recordings that can be decoded, in seconds."""

    recordings: int
    total: float
    shortest: float
    median: float
    mean: float
    longest: float


class AudioReport(NamedTuple):
    """What `scan` found."""

    faults: tuple[Fault, ...]  # in the order of the paths, and of KINDS for one path
    durations: Durations
    by_label: dict[Hashable, Durations]  # of each label, in ascending order; empty where there are no labels
    formats: dict[tuple[int, int], int]  # (hertz, channels) -> recordings, in ascending order
    faulty: int  # recordings with at least one fault


class _Finding(NamedTuple):
    """What one recording tells by itself."""

    faults: tuple[tuple[str, str], ...]
    seconds: float | None = None  # None where it cannot be decoded
    sample_rate: int = 0
    channels: int = 0
    digest: bytes = b""  # of the decoded samples


def scan(
    paths: Sequence[str | os.PathLike],
    labels: Sequence | np.ndarray | None = None,
    *,
    silent_below: float = 1e-3,
    clipped_above: float = 1e-3,
    threads: int = 0,
) -> AudioReport:
    """Decodes every recording and reports all faults.

    A recording is "unreadable" if it cannot be decoded, has "bad samples" if they are NaN, infinite or of another
    scale than [-1, 1], is "too short" below 25 ms, "silent" if it stays close to its mean, "clipped" if many samples
    lie at full scale (which misses what was made quieter after it was clipped), and a "duplicate" if it decodes to
    the same samples as an earlier one, in whatever format. The first of a set of duplicates is no fault.

    Args:
      paths: of the files.
      labels: one per path; gives the durations of each label and names the labels of duplicates that disagree.
      silent_below: largest distance from the mean of a silent recording, full scale being 1 (0.001 is -60 dB).
      clipped_above: share of the samples from 0.98 of full scale up that is no longer accepted.
      threads: that decode at a time; 0 for one per core.

    Returns:
      The report, which depends on neither the number of threads nor their timing.

    Raises:
      InputError: the numbers of labels and paths differ, or a threshold is out of its range.
    """
    check_number("silent_below", silent_below, ">= 0")
    check_number("clipped_above", clipped_above, "in [0, 1]")
    files = [pathlib.Path(path).expanduser() for path in paths]
    names = None if labels is None else np.asarray(labels).tolist()
    if names is not None and len(names) != len(files):
        raise InputError(f"labels: expected one for each of {len(files)} paths, got {len(names)}")
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        findings = list(pool.map(lambda file: _examine(file, silent_below, clipped_above), files))
    faults = _all_faults(files, findings, names)
    return AudioReport(
        faults=faults,
        durations=_durations(findings),
        by_label=_by_label(findings, names) if names is not None else {},
        formats=_formats(findings),
        faulty=len({fault.path for fault in faults}),
    )


def report_lines(report: AudioReport) -> list[str]:
    """The report as text: durations, formats, then every fault, one line each."""
    lines = [f"{report.durations.recordings} recordings decoded: {_told(report.durations)}"]
    lines += [f"label {label}: {each.recordings} recordings, {_told(each)}" for label, each in report.by_label.items()]
    for (sample_rate, channels), count in report.formats.items():
        lines.append(f"{count} recordings at {sample_rate} Hz with {channels} channel{'s' if channels > 1 else ''}")
    if not report.faults:
        return [*lines, "no faults"]
    kinds = [fault.kind for fault in report.faults]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
    lines.append(f"faults in {report.faulty} recordings: {counts}")
    return lines + [f"{fault.kind}: {fault.path}: {fault.detail}" for fault in report.faults]


def _examine(file: pathlib.Path, silent_below: float, clipped_above: float) -> _Finding:
    """Decodes one recording at its own rate and looks at it."""
    try:
        recording = read_recording(file)
    except InputError as error:
        return _Finding((("unreadable", str(error).removeprefix("path: ")),))
    samples, rate = recording
    facts = (len(samples) / rate, rate, samples.shape[1])
    try:
        check_samples(file, recording)
    except InputError as error:
        return _Finding((("bad samples", str(error).removeprefix("path: ")),), *facts)
    found = []
    if len(samples) * _SAMPLE_RATE < MIN_SAMPLES * rate:
        found.append(("too short", f"{1000 * facts[0]:.1f} ms, expected at least {MIN_SAMPLES / _SAMPLE_RATE:g} s"))
    distance = float(np.abs(samples - samples.mean(axis=0, dtype=np.float64)).max())
    if distance <= silent_below:
        found.append(("silent", f"no sample lies further than {distance:.2g} from the mean"))
    share = float(np.mean(np.abs(samples) >= _FULL_SCALE))
    if share > clipped_above:
        found.append(("clipped", f"{100 * share:.2g} % of the samples lie at full scale"))
    content = hashlib.sha256(f"{rate} {samples.shape[1]} ".encode())
    content.update(samples.data)
    return _Finding(tuple(found), *facts, content.digest())


def _all_faults(files: list[pathlib.Path], findings: list[_Finding], labels: list | None) -> tuple[Fault, ...]:
    """The faults of each recording alone, and those that appear only beside the others."""
    faults = []
    first: dict[bytes, int] = {}
    for index, (file, finding) in enumerate(zip(files, findings, strict=True)):
        faults += [Fault(file, kind, detail) for kind, detail in finding.faults]
        if not finding.digest:
            continue
        earlier = first.setdefault(finding.digest, index)
        if earlier != index:
            detail = f"the same samples as {files[earlier]}"
            if labels is not None and labels[earlier] != labels[index]:
                detail += f", but the labels {labels[earlier]} and {labels[index]} differ"
            faults.append(Fault(file, "duplicate", detail))
    return tuple(faults)


def _durations(findings: Iterable[_Finding]) -> Durations:
    """Statistics of those that have a duration; zeros where none has."""
    seconds = np.array([each.seconds for each in findings if each.seconds is not None])
    if len(seconds) == 0:
        return Durations(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    values = (seconds.sum(), seconds.min(), np.median(seconds), seconds.mean(), seconds.max())
    return Durations(len(seconds), *(float(value) for value in values))


def _by_label(findings: list[_Finding], labels: list) -> dict[Hashable, Durations]:
    """Durations of each label's recordings."""
    groups: dict[Hashable, list[_Finding]] = {label: [] for label in sorted(set(labels))}
    for finding, label in zip(findings, labels, strict=True):
        groups[label].append(finding)
    return {label: _durations(group) for label, group in groups.items()}


def _formats(findings: list[_Finding]) -> dict[tuple[int, int], int]:
    """How many recordings there are of each rate and number of channels."""
    formats = [(each.sample_rate, each.channels) for each in findings if each.seconds is not None]
    return {each: formats.count(each) for each in sorted(set(formats))}


def _told(durations: Durations) -> str:
    """Durations in words."""
    if durations.recordings == 0:
        return "no duration"
    return (
        f"{durations.total / 3600:.2f} h, shortest {durations.shortest:.2f} s, median {durations.median:.2f} s, mean"
        f" {durations.mean:.2f} s, longest {durations.longest:.2f} s"
    )
