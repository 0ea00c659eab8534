"""Every error this project raises on purpose.

    MadpoError
    |- InvalidArgumentError (ValueError)     the request, file or setting is wrong; carries field violations
    |  |- InvalidPairError                   one row or pair is unusable; carries its id
    |- NotFoundError (LookupError)           no such job, dataset, model, checkpoint, key
    |  |- BeingRemovedError                  somebody is removing it
    |- AlreadyExistsError                    the id is taken by something else
    |- FailedPreconditionError               right request, wrong state
    |  |- RevisionMismatchError              a reply came from another reward-model revision than the pinned one
    |  |- UnknownFormatError                 a stored document was written by a newer version of madpo
    |  |- StaleAttemptError                  another attempt owns the job now
    |- UnauthenticatedError (PermissionError)
    |- PermissionDeniedError (PermissionError) the token is good, but not for this
    |- OverloadedError                       refused by back-pressure; may be retried after `retry_after_s`
    |- UnavailableError (ConnectionError)    nobody answers, or still loading or draining
    |- DeadlineExceededError (TimeoutError)
    |- CorruptObjectError                    stored bytes do not match their digest
    |- NonFiniteError (ArithmeticError)      a margin, loss or gradient norm is NaN or infinite; carries pair ids
    |- InternalError (RuntimeError)          a defect; clients see only the request id

Children also inherit the standard exception they refine. All survive pickling, since they cross process boundaries.
To add one: subclass here, add a row to the table in `madpo.rpc.status`, and the round-trip test covers it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request (`spec.policy_training.method.params.tau`) and what is wrong."""

    field: str
    description: str


class MadpoError(Exception):
    """Root of the tree. The message says what, which, what was expected, and what to do."""


class InvalidArgumentError(MadpoError, ValueError):
    """The request, file or setting is wrong; sending it again cannot help.

    Attributes:
        violations: The wrong fields, when they are known.
    """

    def __init__(self, message: str, violations: Sequence[FieldViolation] = ()) -> None:
        super().__init__(message, tuple(violations))
        self.violations = tuple(violations)

    @classmethod
    def of(cls, violations: Sequence[FieldViolation], *, what: str = "") -> Self:
        """One that names every wrong field; `what` says of what they are."""
        text = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        return cls(f"{what}: {text}" if what else text, violations)

    @classmethod
    def in_field(cls, field: str, description: str) -> Self:
        """One about a single field."""
        return cls.of([FieldViolation(field, description)])

    def __str__(self) -> str:
        return str(self.args[0])


class InvalidPairError(InvalidArgumentError):
    """A row or pair cannot be used; the violation's field names it."""


class NotFoundError(MadpoError, LookupError):
    """There is no such thing."""


class BeingRemovedError(NotFoundError):
    """It is on its way out: nobody may use it any more, and what is kept of it is no reason to bring it back."""


class AlreadyExistsError(MadpoError):
    """The id is taken by something with other content."""


class FailedPreconditionError(MadpoError):
    """The request is right but the state is not."""


class RevisionMismatchError(FailedPreconditionError):
    """A score came from another reward-model revision than the job pinned."""


class UnknownFormatError(FailedPreconditionError):
    """A stored document has a format or a kind that only a newer version of madpo knows."""


class StaleAttemptError(FailedPreconditionError):
    """Another attempt owns the job now; the caller must stop."""


class UnauthenticatedError(MadpoError, PermissionError):
    """The token is absent or wrong."""


class PermissionDeniedError(MadpoError, PermissionError):
    """The token's role does not allow the call."""


class OverloadedError(MadpoError):
    """Refused by back-pressure.

    Attributes:
        retry_after_s: When to try again; None means it cannot help (the request itself is too large).
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class UnavailableError(MadpoError, ConnectionError):
    """Nobody answers, or the service is still loading or draining."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DeadlineExceededError(MadpoError, TimeoutError):
    """The time given has passed; the work may still finish."""


class CorruptObjectError(MadpoError):
    """Stored bytes do not match their recorded digest or size."""


class NonFiniteError(MadpoError, ArithmeticError):
    """A margin, loss or gradient norm is not finite; the weights were not moved.

    Attributes:
        pair_ids: The pairs of the refused step, the offending ones first where they are known.
    """

    def __init__(self, message: str, pair_ids: Sequence[str] = ()) -> None:
        super().__init__(message, tuple(pair_ids))
        self.pair_ids = tuple(pair_ids)

    def __str__(self) -> str:
        return str(self.args[0])


class InternalError(MadpoError, RuntimeError):
    """A defect of ours."""


RETRYABLE = (UnavailableError, OverloadedError, DeadlineExceededError, StaleAttemptError, InternalError)
"""Errors that say nothing about the job itself: a run crashes on them, and the queue decides about another attempt."""
