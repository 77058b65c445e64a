"""Errors whose message is one sentence for a person: what is wrong, where, and the way out."""


class SealError(ValueError):
    """Something the user can mend; the message names the file, key or value and what to do."""


class ParameterError(SealError):
    """A parameter set does not fit its notebook."""


class RunError(SealError):
    """A run folder cannot be used as asked (taken, foreign, damaged)."""


class DataError(SealError):
    """Input data is missing or malformed."""


class DivergedError(SealError):
    """Training produced a loss that is not a finite number."""
