"""The parts of `experiments.report`: results of a study's runs, tables of them, figures, and the files to write."""
