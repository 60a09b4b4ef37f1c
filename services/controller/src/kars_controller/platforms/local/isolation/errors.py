"""The one error of this package. Whoever sees it must not run the process."""


class IsolationError(Exception):
    """A step of containment failed or is not available here.

    Attributes:
        reason: stable, lower_snake; says which control.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
