"""Errors meant for users: one or two lines that say what, where, which numbers and what to do next.

`xllm-speech` prints a `UserError` without a traceback and exits with its `exit_code`; anything else is a defect of ours
and keeps its traceback.
"""


class UserError(Exception):
    """A mistake in what the user gave us, or something missing on the machine."""

    exit_code = 1


class ConfigError(UserError):
    """A configuration file or a `key=value` override is wrong."""


class DataError(UserError):
    """A manifest, data directory, recording or picture is wrong."""


class CheckpointError(UserError):
    """A model directory or a checkpoint cannot be used."""


class MissingDependency(UserError):
    """An optional package or program is absent; the text names the command that installs it."""


class SeamError(ValueError):
    """A record broke its contract between two layers: shapes, lengths or counts do not agree."""


def first_line(error: Exception) -> str:
    """What another library's error says, in one line, for the text of ours."""
    return (str(error).strip() or repr(error)).splitlines()[0]
