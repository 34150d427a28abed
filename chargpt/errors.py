"""The one type of all errors that users can cause, and the escaping of untrusted text in messages."""


class ChargptError(ValueError):
    """Something that chargpt was given is wrong. The message names the file, line or key and says what to do.

    Several problems are several arguments, a line each. One that starts with a space belongs to the line before.
    """

    def __str__(self) -> str:
        return "\n".join(self.args)


def escape(value: object, length: int = 200) -> str:
    """Untrusted text for a message: its first `length` characters, with control characters written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[:length])
