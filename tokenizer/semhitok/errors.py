"""Errors that are the user's to mend: one clear line, exit code 2, no traceback."""


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what to do."""
