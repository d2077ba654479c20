"""The errors a user sees as they are: one sentence that names the field, the value and the remedy."""


class SlimError(Exception):
    """Work that was asked for correctly and failed on the way. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(SlimError):
    """Something the user gave cannot be used."""

    exit_code = 2


class Cancelled(SlimError):
    """The user stopped the work."""

    exit_code = 130
