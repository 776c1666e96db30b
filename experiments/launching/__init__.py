"""What `python -m experiments.launch` is made of."""
