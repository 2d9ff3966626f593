"""What can go wrong through no fault of the software; every message says what to do."""


class InpaintingError(ValueError):
    """Base of all errors that a user can mend."""


class CaseError(InpaintingError):
    """One case cannot be processed; the others go on."""


class CheckpointError(InpaintingError):
    """A weights file cannot be used."""


class ConfigError(InpaintingError):
    """An argument or a parameters file cannot be used."""
