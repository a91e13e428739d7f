"""The one class of errors that are the user's to mend; the image tokenizer raises it too."""

from collections.abc import Callable
from functools import wraps

from semhitok.errors import UserError

__all__ = ["NothingUsable", "UserError", "ending_lmms_eval"]


class NothingUsable(UserError):
    """Nothing in a place can be used; whoever has other places may go on without it."""


def ending_lmms_eval(function: Callable) -> Callable:
    """A function of an lmms-eval task whose UserError ends the program with its one line and status 1.

    lmms-eval 0.7.3 calls such a function up to five times, then shows a traceback of its own in which the line is
    hidden, and ends with status 0.
    """

    @wraps(function)
    def called(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise SystemExit(f"error: {error}") from error

    return called
