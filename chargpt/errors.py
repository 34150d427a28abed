"""The one error type that users can cause, and how it may quote what strangers wrote."""


class ChargptError(ValueError):
    """A mistake in what chargpt was given: the message names the file, line or key and says what to do."""


def escape(value: object, length: int = 200) -> str:
    """Untrusted text for a message: its first `length` characters, with control characters written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value)[:length])
