"""The errors that a user can fix; the command line prints them without a traceback."""


class UserError(ValueError):
    """Something that the user gave is wrong; the message names the place and the fix."""

    shared = False
    """Whether all ranks raise it together, so that one of them may speak for all."""
    exit_code = 2


class ConfigError(UserError):
    """A configuration that cannot run. Each line of the message is one problem."""


class DataError(UserError):
    """A data set that cannot be trained on. Each line of the message is one problem."""


class StuckError(UserError):
    """A run that makes no progress as it is set up; its last checkpoint holds what it reached."""

    exit_code = 3


class StoppedError(UserError):
    """A signal ended a run before its first step. Rank 0 says so, and no rank waits for another."""

    exit_code = 130


class OutputError(UserError):
    """This rank could not write what it must, or read it again: a full disk, a lost file."""
