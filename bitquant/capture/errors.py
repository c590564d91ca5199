"""The errors of the capture package."""


class CaptureError(ValueError):
    """The model cannot be captured as asked; the message says what to change."""


class TraceFailed(Exception):
    """One module cannot be traced; the module falls back to call-by-call interception."""


class GuardFailed(Exception):
    """A graph does not fit this call: a value it was traced with has changed."""
