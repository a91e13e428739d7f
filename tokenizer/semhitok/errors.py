"""Errors that are the user's to mend: one clear line, exit code 2, no traceback."""


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the error's name where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
