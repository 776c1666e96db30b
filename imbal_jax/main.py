"""The one door: python -m imbal_jax.main --config=FILE [--task=TASK] [--workdir=DIR] [--config.KEY=VALUE ...]."""

import argparse
import logging
import pathlib
import sys
import threading
import warnings
from collections.abc import Callable

from imbal_jax.errors import InputError, NonFiniteLossError

EXIT_INPUT = 2  # bad input
EXIT_NON_FINITE = 3  # the loss became NaN or infinite
EXIT_INTERRUPTED = 85  # asked to stop; the same command continues

_OF_A_RUN = ("config", "workdir", "print_config")
# The tasks, and the options that each one takes.
_TASKS = {
    "train": _OF_A_RUN,
    "evaluate": _OF_A_RUN,
    "predict": (*_OF_A_RUN, "input", "output", "seed", "condition"),
    "spectrum": (*_OF_A_RUN, "output", "seed"),
    "export": (*_OF_A_RUN, "output", "seed"),
    "describe": _OF_A_RUN,
    "check": _OF_A_RUN,
    "prepare": ("input", "output"),
}

_HELP = """
tasks:
  train      train every seed of the config, test the best parameters, write the run folder (--workdir)
  evaluate   restore a run's best parameters and evaluate them on the test set (--workdir)
  predict    write class probabilities for the images of --input to --output (--workdir)
  spectrum   eigenvalue densities of the Hessian by class of a run (--run), as JSON, .npz and figures (--output)
  export     write the LoRA weights and the head of a run (--workdir) in peft's files (--output, a folder), or
             a ResNet-50 or ResNet-152 under torchvision's names (--output, a new .safetensors file)
  describe   print parameters and class counts as JSON; needs neither weights nor, for well-known sets, data
  check      scan the data set; print class counts per split and every fault as JSON
  prepare    turn cifar-10-binary.tar.gz or cifar-100-binary.tar.gz (--input) into a data directory (--output)

overrides:
  --config.profile.alpha=0.1         sets any leaf that --print_config shows
  --config.correction.name=focal     chooses another builder; the section starts again from that builder's defaults

examples:
  python -m imbal_jax.main --config=configs/digits.py --workdir=runs/digits --config.seeds=0,1,2
  python -m imbal_jax.main --config=configs/digits.py:ldam_drw --workdir=runs/digits_ldam_drw
  python -m imbal_jax.main --task=evaluate --workdir=runs/digits
  python -m imbal_jax.main --task=predict --workdir=runs/digits --input=images.npz --output=probabilities.npz
  python -m imbal_jax.main --task=spectrum --run=runs/digits --config.spectrum.classes=0,8
  python -m imbal_jax.main --config=configs/cifar10_vgg11.py --task=describe
  python -m imbal_jax.main --task=export --workdir=runs/crema_d --output=adapters/crema_d

A run that is killed continues when the same command is given again.
exit status: 0 done, 1 faults found by check, 2 bad input, 3 non-finite loss, 85 interrupted and saved
"""


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Reads the command line into options and config overrides."""
    from imbal_jax.config import parse_overrides

    parser = argparse.ArgumentParser(
        prog="python -m imbal_jax.main",
        description="Learning from class-imbalanced data with curvature.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE[:ARGUMENT]", help="a config file; by default that of the run folder")
    parser.add_argument("--task", choices=_TASKS, default="train", help="what to do (default: train)")
    parser.add_argument("--workdir", "--run", type=pathlib.Path, metavar="DIR", help="the run folder")
    parser.add_argument(
        "--input", type=pathlib.Path, metavar="FILE", help="predict: an .npz with images x; prepare: an archive"
    )
    parser.add_argument(
        "--output", type=pathlib.Path, metavar="PATH", help="predict: the .npz to write; others: a folder"
    )
    parser.add_argument(
        "--seed", type=int, help="predict, spectrum, export: which of the run's seeds (default: the first)"
    )
    parser.add_argument(
        "--condition",
        default="",
        metavar="VALUES|METRIC",
        help="predict: the hyper-parameters to tell a conditional model, as 0.1,2; or those best for a metric (auc)",
    )
    parser.add_argument("--print_config", action="store_true", help="print the resolved config as JSON and exit")
    options, rest = parser.parse_known_args(arguments)
    overrides = parse_overrides(rest)
    _refuse_unused(options, overrides)
    return options, overrides


def _refuse_unused(options: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Raises InputError for an option that the task would not look at."""
    valid = _TASKS[options.task]
    taken = ", ".join(f"--{name}" for name in valid)
    for name, value in vars(options).items():
        given = value is not None and value is not False and value != ""
        if given and name not in ("task", *valid):
            raise InputError(f"--{name}: --task={options.task} takes {taken}; got --{name}={value}")
    if overrides and "config" not in valid:
        key, value = next(iter(overrides.items()))
        raise InputError(f"--config.{key}: --task={options.task} takes {taken}; got --config.{key}={value}")


def run(arguments: list[str]) -> int:
    """Does what the arguments ask; returns the exit status.

    Raises:
      InputError, NonFiniteLossError, Interrupted: see the tasks.
    """
    options, overrides = parse(arguments)
    from imbal_jax import inspection_tasks, tasks  # jax and everything else: after the arguments have been read

    if options.task == "prepare":
        tasks.prepare_task(_required(options.input, "input", "prepare"), _required(options.output, "output", "prepare"))
        return 0
    config = _config(options, overrides)
    if options.print_config:
        print(config.to_json(indent=2))
        return 0
    if options.task == "describe":
        inspection_tasks.describe_task(config)
        return 0
    if options.task == "check":
        return inspection_tasks.check_task(config)
    workdir = _required(options.workdir, "workdir", options.task)
    if options.task == "train":
        tasks.train_task(config, workdir)
    elif options.task == "evaluate":
        tasks.evaluate_task(config, workdir)
    elif options.task == "spectrum":
        tasks.spectrum_task(config, workdir, options.output, options.seed)
    elif options.task == "export":
        tasks.export_task(config, workdir, _required(options.output, "output", "export"), options.seed)
    else:
        output = options.output or workdir / "predictions.npz"
        images = _required(options.input, "input", "predict")
        tasks.predict_task(config, workdir, images, output, options.seed, options.condition)
    return 0


def _config(options: argparse.Namespace, overrides: dict[str, str]):
    """The resolved config: of the file given, else of the run folder."""
    from ml_collections import ConfigDict

    from imbal_jax.config import load_config
    from imbal_jax.resolve import resolve
    from imbal_jax.training.folders import config_differences, read_config

    stored = None
    if options.task in ("evaluate", "predict", "spectrum", "export"):
        stored = read_config(_required(options.workdir, "workdir", options.task))
    if options.config is None:
        if options.workdir is None:
            raise InputError("--config: expected a config file, got none; see --help")
        source = ConfigDict(stored or read_config(options.workdir))
    else:
        source = load_config(options.config)
    config = resolve(source, overrides)
    if stored is not None:
        # Completed first: the run may be older than an option.
        differences = config_differences(resolve(ConfigDict(stored)).to_dict(), config.to_dict())
        if differences:
            raise InputError(f"--config: the run in {options.workdir} has another config: {'; '.join(differences)}")
    return config


def _required(value: pathlib.Path | None, name: str, task: str) -> pathlib.Path:
    """Returns an option's value, or raises InputError."""
    if value is None:
        raise InputError(f"--{name}: expected a path for --task={task}, got none; see --help")
    return value.expanduser()


def guarded(action: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Runs a command and turns the errors a user can cause into one line and an exit status.

    Args:
      action: the command; returns an exit status.
      arguments: handed to it.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.captureWarnings(True)
    # Orbax warns of its own temporary folders, and its threads (like TensorBoard's) print the errors that the main
    # thread raises again.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    threading.excepthook = lambda raised: logging.debug("in thread %s: %s", raised.thread, raised.exc_value)
    warnings.formatwarning = lambda message, *_, **__: str(message)
    from imbal_jax.training.interruption import Interrupted

    try:
        return action(arguments)
    except InputError as error:
        return _fail(str(error), EXIT_INPUT)
    except OSError as error:
        return _fail(f"{error.filename or 'run folder'}: {error.strerror or error}", EXIT_INPUT)
    except NonFiniteLossError as error:
        return _fail(str(error), EXIT_NON_FINITE)
    except Interrupted as error:
        return _fail(str(error), EXIT_INTERRUPTED)


def _fail(message: str, status: int) -> int:
    """Prints an error on one line."""
    sys.unraisablehook = lambda raised: None  # what fails while the failed run is taken down is no news
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(guarded(run, sys.argv[1:]))
