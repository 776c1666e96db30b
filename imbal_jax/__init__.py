"""Learning from class-imbalanced data with curvature, in JAX."""

__version__ = "0.1.0"
