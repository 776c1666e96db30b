"""The errors a user can cause, told in one line."""


class InputError(ValueError):
    """Bad input: a config, a label, a file or a checkpoint.

    The message names the argument, the value received and what was expected. The command line prints it
    without a traceback.
    """


class CheckpointError(InputError):
    """A checkpoint that cannot be written, read or used with this config."""


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""
