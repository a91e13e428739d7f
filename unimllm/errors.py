"""The one class of errors that are the user's to mend; the image tokenizer raises it too."""

from semhitok.errors import UserError

__all__ = ["UserError"]
