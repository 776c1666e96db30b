"""Makes kfac-jax run with the jax that is installed.

kfac-jax 0.0.8, the latest release, was written for older versions of jax:

- jax 0.10 and 0.11: `Primitive.get_bind_params` returns one dictionary (since jax 0.9.2), where kfac-jax unpacks two
  values, so that every update of the curvature raises; and names it takes from `jax.core` moved to `jax.extend.core`.
- jax 0.11: `Jaxpr` and `ClosedJaxpr` are one class that always carries its constants and has other keywords.

What upstream has cured and not yet released is adapted here, for the pairs of versions with which it was tested and for
no others. A row of `_ADAPTATIONS` goes when the project requires a release of kfac-jax that needs none.
"""

import importlib
import importlib.metadata
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.extend

from imbal_jax.errors import InputError

_MOVED = ("Effects", "no_effects", "DebugInfo", "DropVar", "gensym", "new_jaxpr_eqn")


def load_kfac_jax() -> Any:
    """The module kfac_jax, adapted; calling it again changes nothing.

    Raises:
      InputError: kfac-jax is not installed, or this pair of versions is not one that was tested.
    """
    try:
        version = importlib.metadata.version("kfac-jax")
    except importlib.metadata.PackageNotFoundError:
        raise InputError("ekfac: expected kfac-jax to be installed (pip install kfac-jax==0.0.8), found none") from None
    for adapt in adaptations(version, jax.__version__):
        adapt()
    return importlib.import_module("kfac_jax")


def adaptations(kfac_jax_version: str, jax_version: str) -> tuple[Callable[[], None], ...]:
    """What a pair of versions needs, in the order of application.

    Args:
      kfac_jax_version: "major.minor.patch".
      jax_version: likewise; the patch plays no role.

    Raises:
      InputError: the pair was not tested.
    """
    pair = kfac_jax_version, ".".join(jax_version.split(".")[:2])
    if pair not in _ADAPTATIONS:
        tested = ", ".join(f"kfac-jax {kfac} with jax {series}.*" for kfac, series in _ADAPTATIONS)
        raise InputError(f"ekfac: expected {tested}, got kfac-jax {kfac_jax_version} with jax {jax_version}")
    return _ADAPTATIONS[pair]


def _restore_moved_names() -> None:
    """Puts the names back where kfac-jax looks for them already when it is imported, and imports it."""
    for name in _MOVED:
        if name not in vars(jax.core):  # hasattr would warn where the name is deprecated
            setattr(jax.core, name, getattr(jax.extend.core, name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kfac-jax's own dependencies
        importlib.import_module("kfac_jax")


def _evaluate_equations_anew() -> None:
    """Replaces the function that unpacks two values; kfac-jax always calls it through its module."""
    tag_graph_matcher: Any = importlib.import_module("kfac_jax._src.tag_graph_matcher")
    tag_graph_matcher.eval_jaxpr_eqn = _evaluate_equation


def _evaluate_equation(equation, values: list) -> list:
    """The outputs of an equation of a jaxpr, as a list."""
    with jax.extend.source_info_util.user_context(equation.source_info.traceback):
        outputs = equation.primitive.bind(*values, **equation.primitive.get_bind_params(equation.params))
    return list(outputs) if equation.primitive.multiple_results else [outputs]


def _keep_constants_attached() -> None:
    """Replaces what constructs closed jaxprs by what the merged class offers."""
    tag_graph_matcher: Any = importlib.import_module("kfac_jax._src.tag_graph_matcher")
    tracer: Any = importlib.import_module("kfac_jax._src.tracer")
    tag_graph_matcher.ClosedJaxpr = _attach_constants
    tag_graph_matcher.to_closed_jaxpr = lambda jaxpr: jaxpr
    # The tracer takes the class from jax.extend.core, which must stay as it is for all others.
    core = types.SimpleNamespace(**{**vars(jax.extend.core), "ClosedJaxpr": _attach_constants})
    tracer.jex = types.SimpleNamespace(core=core)


def _attach_constants(jaxpr, consts: list):
    """A jaxpr with the values of its first inputs."""
    return jaxpr.with_consts(consts)


_ADAPTATIONS: Mapping[tuple[str, str], tuple[Callable[[], None], ...]] = {
    ("0.0.8", "0.10"): (_restore_moved_names, _evaluate_equations_anew),
    ("0.0.8", "0.11"): (_restore_moved_names, _evaluate_equations_anew, _keep_constants_attached),
}
