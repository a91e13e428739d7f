"""Errors that are the user's to mend: one clear line, exit code 2, no traceback."""


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, with the next where it ends in a colon; its name where it has none."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {others[0].strip()}" if others and first.endswith(":") else first
