"""Errors of the SDK beside those of `madpo.errors`."""

from madpo.errors import MadpoError
from madpo.types import Job


class JobFailedError(MadpoError):
    """A job that was waited for has failed or was cancelled.

    Attributes:
        job: The job as it ended; `job.reason` says why.
    """

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message, job)
        self.job = job

    def __str__(self) -> str:
        return str(self.args[0])
