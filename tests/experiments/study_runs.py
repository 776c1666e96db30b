"""Run folders as training leaves them, with results made up."""

import json


def write_run(folder, cell, results, *, epochs=10, devices=("cpu",), records=None, data=None):
    """Writes a run folder of a cell.

    Args:
      folder: of the study.
      cell: the name of the cell.
      results: the content of result.json by seed.
      epochs: in its config.
      devices: in its metadata.
      records: of training, for every seed.
      data: the section of the config; the bundled digits by default.
    """
    run = folder / "runs" / cell / ("seeds_" + "_".join(map(str, results)))
    for seed, result in results.items():
        path = run / f"seed_{seed}"
        path.mkdir(parents=True)
        (path / "result.json").write_text(json.dumps(result))
        if records is not None:
            (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = {"data": data or {"name": "digits"}, "model": {"name": "cnn"}, "direction": {"name": "gradient"}}
    config["training"] = {"epochs": epochs, "batch_size": 32, "select": "last"}
    (run / "config.json").write_text(json.dumps(config))
    machine = {
        "devices": devices,
        "backend": "cpu",
        "platform": "Linux",
        "python": "3.11.7",
        "packages": {"jax": "0.10"},
    }
    machine |= {"git_commit": "abc123", "started": "2025-03-04T05:06:07+00:00", "wall_seconds": 90.0}
    (run / "metadata.json").write_text(json.dumps(machine))
    return run
