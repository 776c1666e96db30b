"""One short file a study, see `experiments.study`."""
