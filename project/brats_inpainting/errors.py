"""Errors in the user's input; each message says how to fix it."""


class InpaintingError(ValueError):
    """Base class of all errors that users can fix."""


class CaseError(InpaintingError):
    """A case cannot be processed; the run continues with the others."""


class CheckpointError(InpaintingError):
    """A weights file cannot be used."""


class ConfigError(InpaintingError):
    """An argument or a parameters file cannot be used."""
