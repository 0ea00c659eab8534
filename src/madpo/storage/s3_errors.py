"""What an S3 server's refusals mean, and what to do about them.

Whatever the server or an operator can mend is an UnavailableError or an OverloadedError, so that services wait for it
and say why. What is wrong with one request is an error of that request.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree.ElementTree import ParseError

from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from madpo.errors import (
    FailedPreconditionError,
    InternalError,
    MadpoError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

REPEATED = (408, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed."""
_FULL = frozenset({"XMinioStorageFull", "QuotaExceeded", "InsufficientCapacity"})
_SPOILED_ON_THE_WAY = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InvalidDigest",
        "RequestTimeout",
        "XAmzContentSHA256Mismatch",
        "XMinioInvalidChecksum",
    }
)
_WRONG_PLACE = frozenset(
    {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "TemporaryRedirect"}
)
_NOT_OFFERED = frozenset({"NotImplemented", "MethodNotAllowed"})
_RIGHTS = {
    "GET": "s3:GetObject",
    "HEAD": "s3:GetObject",
    "PUT": "s3:PutObject",
    "POST": "s3:PutObject",
    "DELETE": "s3:DeleteObject",
    "LIST": "s3:ListBucket",
}
"""What a request needs, by its method; listing is called by a name of its own."""
_REMEDIES = {
    "InvalidAccessKeyId": "it knows no such access key: check s3_access_key, and that s3_endpoint is where it was made",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: check s3_secret_key and s3_access_key",
    "RequestTimeTooSkewed": "the clocks of the two machines differ by minutes: let both follow a time server",
    "ExpiredToken": "the credentials have expired: give new ones",
    "InvalidObjectState": "the object was moved to an archive: restore it, and keep the bucket out of archiving rules",
}
"""What to do about a refusal, by its code; the reply to a HEAD has none."""


class RefusedError(UnavailableError):
    """The server does not let us: an operator can mend it, and until then it is as if it were away."""


class ConditionFailedError(FailedPreconditionError):
    """The object is not in the version that a conditional write names."""


class ConflictError(UnavailableError):
    """Another conditional write is under way."""


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket of a server, for messages."""

    server: str
    bucket: str
    prefix: str

    @contextmanager
    def errors(self, method: str, key: str = "") -> Iterator[None]:
        """Turn what a request to it raises into errors of ours.

        Args:
            method: Of HTTP; LIST is a GET that lists.
            key: Of the object, without the prefix.
        """
        try:
            yield
        except HTTPError as error:
            raise UnavailableError(
                f"{self.server} does not answer ({error}): is s3_endpoint right, and is it up?"
            ) from error
        except MinioException as error:
            raise self._explained(error, method, key) from error
        except (ParseError, UnicodeDecodeError, NoS3ReplyError) as error:
            raise UnavailableError(
                f"{self.server} does not answer as S3 does: is s3_endpoint right, or is a proxy in between?"
            ) from error

    def _explained(self, error: MinioException, method: str, key: str) -> MadpoError:
        status, code = _status(error), str(getattr(error, "code", None) or "")
        said = f"{status} {code}".strip()
        if code == "NoSuchBucket":
            return RefusedError(f"{self.server} has no bucket {self.bucket!r}: create it, or correct store_url")
        if status == 507 or code in _FULL:
            return OverloadedError(f"{self.server} is full ({said}): free some space, or raise its quota", 5.0)
        if code in _SPOILED_ON_THE_WAY:
            return UnavailableError(f"{self.server}: the bytes of {key} did not reach it whole ({said})")
        if code in _WRONG_PLACE or 300 <= status < 400:
            return RefusedError(
                f"{self.server} says that bucket {self.bucket!r} is elsewhere ({said}): check s3_region and s3_endpoint"
            )
        if code in _NOT_OFFERED:
            return FailedPreconditionError(f"{self.server} does not offer what is needed for {key} ({said})")
        if status in (401, 403) or code in _REMEDIES:
            right = _RIGHTS.get(method, method)
            remedy = _REMEDIES.get(code, f"check s3_access_key, s3_secret_key, and that they allow {right}")
            what = f"{self.bucket}/{self.prefix}{key} for {right} ({code or status})"
            return RefusedError(f"{self.server} refuses access to {what}: {remedy}")
        match status:
            case 404 if not _is_page(error):
                return NotFoundError(f"no object {key}")
            case 409:
                return ConflictError(f"{self.server}: {key} is being written by another")
            case 412:
                return ConditionFailedError(f"{self.server}: {key} is not in the expected version")
        if status in REPEATED or status >= 500:
            # Several servers say no more when their disks are full.
            hint = " when it is written to: is there room on its disks?" if _may_be_full(method, status) else ""
            return UnavailableError(f"{self.server} fails with {said}{hint}")
        if isinstance(error, InvalidResponseError):
            return UnavailableError(
                f"{self.server} does not answer as S3 does (status {status}): is s3_endpoint right, or is a proxy in "
                "between?"
            )
        return InternalError(f"{self.server} refuses a request for {key}: {error}")


class NoS3ReplyError(Exception):
    """A reply lacks what every reply of S3 has."""


def etag_of(headers: Mapping[str, str]) -> str:
    """The etag that a reply gives the object."""
    if "etag" not in headers:
        raise NoS3ReplyError
    return headers["etag"].strip('"')


def _may_be_full(method: str, status: int) -> bool:
    return method in ("PUT", "POST") and status in (500, 503)


def _is_page(error: MinioException) -> bool:
    """Whether somebody else answers, such as a proxy that says 404 while the server behind it is being replaced."""
    return isinstance(error, InvalidResponseError) and bool(error._body)


def _status(error: MinioException) -> int:
    """HTTP status of an error, 0 when there was none."""
    if isinstance(error, S3Error):
        return int(error.response.status)
    if isinstance(error, ServerError):
        return int(error.status_code)
    return int(error._code) if isinstance(error, InvalidResponseError) else 0
