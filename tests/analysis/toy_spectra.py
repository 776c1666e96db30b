"""Spectrum folders made by hand, for tests of what reads them."""

import json

import numpy as np

NAMES, COUNTS = ("cat", "dog", "eel"), (10, 500, 3)
NODES = np.array([[-2.0, -0.05, 0.0, 8.0], [-1.0, 0.0, 8.0, np.nan]])  # of two probes
WEIGHTS = np.array([[0.1, 0.2, 0.4, 0.3], [0.2, 0.6, 0.2, 0.0]])


def group(name, index, scale=1.0):
    """The entry of a group whose nodes are NODES times a scale."""
    told = {"name": name, "class": index, "examples": 7, "accuracy": None if name == "eel" else 0.5}
    told |= {"lambda_max": 8.0 * scale, "lambda_min": -2.0 * scale, "ratio": 0.25}
    told |= {"lambda_max_residual": 1e-6, "lambda_min_residual": 1.0 if name == "eel" else 1e-6}
    told |= {"lambda_max_standard_error": 0.0, "lambda_min_standard_error": 0.5 * scale}
    return told | {"trace": 123.4 * scale, "trace_standard_error": 5.6 * scale, "steps": [4, 3]}


def write(folder, scale=1.0, indices=(None, 0, 1, 2), **changes):
    """A spectrum folder; returns it."""
    groups = [group("all" if index is None else NAMES[index], index, scale) for index in indices]
    skipped = [index for index in range(3) if index not in indices]
    facts = {"num_parameters": 1000, "accuracy_split": "validation", "class_names": NAMES, "class_counts": COUNTS}
    facts["skipped"] = [{"class": index, "name": NAMES[index], "reason": "no example"} for index in skipped]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spectrum.json").write_text(json.dumps({**facts, "groups": groups, **changes}))
    shape = (len(groups), 1, 1)
    np.savez(folder / "spectrum.npz", nodes=np.tile(scale * NODES, shape), weights=np.tile(WEIGHTS, shape))
    return folder
