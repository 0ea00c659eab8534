"""Object store on a server that speaks S3."""

import io
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from minio import Minio
from minio.error import S3Error
from pydantic import SecretStr
from urllib3 import PoolManager, Retry, Timeout

from madpo.errors import FailedPreconditionError, InternalError, NotFoundError, UnavailableError
from madpo.ports import ObjectInfo
from madpo.storage.files import copy_stream, replacing
from madpo.storage.keys import check_path
from madpo.storage.s3_errors import (
    REPEATED,
    ConditionFailedError,
    ConflictError,
    NoS3ReplyError,
    Place,
    RefusedError,
    etag_of,
)

_PART_BYTES = 32 << 20  # S3 takes 10,000 parts: files up to 312 GiB
_MAX_CONFLICTS = 8
_MAX_DOWNLOADS = 4
_MAX_UPLOADS = 2
_MAX_LOOKS = 2
_MAX_RETRY_AFTER_S = 10
"""Whoever waits for a store longer does so where it can be seen and ended."""


class S3Store:
    """ObjectStore in one bucket, under an optional key prefix.

    Requests that fail to connect, or are answered by a status of `s3_errors.REPEATED`, are repeated with growing,
    jittered pauses.
    """

    def __init__(
        self,
        bucket: str,
        *,
        endpoint: str,
        secure: bool,
        access_key: SecretStr,
        secret_key: SecretStr,
        region: str,
        prefix: str = "",
        retries: int = 5,
    ) -> None:
        """No request is made yet.

        Args:
            bucket: Name of the bucket.
            endpoint: `host:port` of the server.
            secure: Whether to use TLS.
            access_key: Public half of the credentials.
            secret_key: Secret half of the credentials.
            region: Region requests are signed for.
            prefix: Put before every key, with a `/`.
            retries: How often a failed request is repeated; 5 wait about 6 s in all.
        """
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._region = region
        self._where = f"object store {'https' if secure else 'http'}://{endpoint}"
        self._place = Place(self._where, bucket, self._prefix)
        retry = Retry(
            total=retries,
            backoff_factor=0.2,
            backoff_jitter=0.2,
            status_forcelist=REPEATED,
            allowed_methods=None,
            raise_on_status=False,  # the last reply says why
            retry_after_max=_MAX_RETRY_AFTER_S,
        )
        http = PoolManager(
            maxsize=16,
            timeout=Timeout(connect=5, read=60),
            retries=retry,
            cert_reqs="CERT_REQUIRED",
        )
        self._client = Minio(
            endpoint,
            access_key=access_key.get_secret_value(),
            secret_key=secret_key.get_secret_value(),
            secure=secure,
            region=region,
            http_client=http,
        )

    def check(self) -> None:
        """Make the bucket where it is missing.

        Raises:
            UnavailableError: The server does not answer.
            FailedPreconditionError: It refuses the credentials, or the bucket is missing and may not be made.
        """
        try:
            self._make_bucket()
        except RefusedError as error:
            raise FailedPreconditionError(str(error)) from error

    def _make_bucket(self) -> None:
        with self._place.errors("LIST"):
            if not self._has_bucket():
                try:
                    self._client.make_bucket(self._bucket, location=self._region)
                except S3Error as error:
                    if error.code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                        raise FailedPreconditionError(
                            f"{self._where} has no bucket {self._bucket!r} and does not let us make it ({error.code}):"
                            " create it, or correct store_url"
                        ) from error

    def _has_bucket(self) -> bool:
        try:
            return bool(self._client.bucket_exists(self._bucket))
        except S3Error as error:
            if error.response.status != 403:
                raise
            # A HEAD is refused without a reason; a listing is with one.
            next(iter(self._client.list_objects(self._bucket, prefix=self._prefix)), None)
            return True

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFoundError."""
        return self.get_with_etag(key)[0]

    def get_with_etag(self, key: str) -> tuple[bytes, str]:
        """The object's bytes and their etag. Raises NotFoundError."""
        response = self.request("GET", key)
        return response.data, etag_of(response.headers)

    @contextmanager
    def open_read(self, key: str) -> Iterator[BinaryIO]:
        """The object as a stream. Raises NotFoundError."""
        with self._place.errors("GET", key):
            response = self._client.get_object(self._bucket, self._name(key))
            try:
                etag_of(response.headers)  # else it is a page of somebody else, and no damage of the object
                response.auto_close = False  # the buffer still asks at the end
                yield io.BufferedReader(response, 1 << 20)
            finally:
                response.close()
                response.release_conn()

    def put(self, key: str, data: bytes) -> str:
        """Write or overwrite; returns the etag."""
        return etag_of(self.request("PUT", key, body=data).headers)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create; True when the key holds `data` afterwards."""
        return self._put_conditionally(key, data, {"If-None-Match": "*"}) is not None

    def put_if_match(self, key: str, data: bytes, etag: str) -> str | None:
        """Overwrite only the version `etag`; returns the new etag, or None when another was found."""
        return self._put_conditionally(key, data, {"If-Match": f'"{etag}"'})

    def put_file(self, key: str, path: Path) -> str:
        """Write a local file, in parts where it is large; returns the etag."""
        with self._documents("PUT", key):
            for _ in range(_MAX_UPLOADS):
                try:
                    result = self._client.fput_object(self._bucket, self._name(key), str(path), part_size=_PART_BYTES)
                except S3Error as error:
                    # The completion was repeated after its reply was lost, or the upload was swept.
                    if error.code != "NoSuchUpload":
                        raise
                else:
                    if result.etag:  # a completion may fail with status 200
                        return str(result.etag)
        raise UnavailableError(f"{self._where} does not put the parts of {key} together")

    def get_file(self, key: str, path: Path, *, passed: Callable[[int], None] = lambda count: None) -> str:
        """Copy to a local file, atomically; a broken transfer starts again. Else as that of other stores."""
        for download in range(1, _MAX_DOWNLOADS + 1):
            try:
                with self.open_read(key) as source, replacing(path) as file:
                    return copy_stream(source, file, passed)
            except UnavailableError:
                if download == _MAX_DOWNLOADS:
                    raise
        raise AssertionError  # the last download returns or raises

    def head(self, key: str) -> ObjectInfo | None:
        """The object's description, or None."""
        for _ in range(_MAX_LOOKS):
            try:
                with self._place.errors("HEAD", key):
                    found = self._client.stat_object(self._bucket, self._name(key))
                    if not found.etag:
                        raise NoS3ReplyError
                    return self._info(found)
            except (NotFoundError, InternalError):
                pass
            # A HEAD is answered without a body: that nothing is there may be the word of anybody in between.
            try:
                self.request("GET", key, headers={"Range": "bytes=0-0"})
            except NotFoundError:
                return None
        raise UnavailableError(
            f"{self._where} says now that {key} is there, now that it is not: is a proxy in between?"
        )

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Objects whose key starts with `prefix`, in key order."""
        folder = prefix.rpartition("/")[0]
        if folder:
            check_path(folder)
        with self._documents("LIST", prefix):
            for item in self._client.list_objects(self._bucket, prefix=self._prefix + prefix, recursive=True):
                yield self._info(item)

    def list_names(self, folder: str) -> Iterator[str]:
        """The next parts of the keys below a folder, each once."""
        prefix = f"{self._name(folder)}/"
        with self._documents("LIST", folder):
            for item in self._client.list_objects(self._bucket, prefix=prefix):
                yield str(item.object_name).removeprefix(prefix).rstrip("/")

    def delete(self, key: str) -> None:
        """Remove; absent is fine."""
        try:
            response = self.request("DELETE", key)
        except NotFoundError:
            return
        with self._place.errors("DELETE", key):
            if response.data:
                raise NoS3ReplyError

    def request(
        self, method: str, key: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Any:
        """One request with its whole reply, for what the port has no name for: conditions, ranges, digests.

        The SDK's own request method, since its public ones take no condition headers, and read a reply's body where a
        broken connection is not repeated.
        """
        if body is not None:
            headers = {"Content-Type": "application/octet-stream", **(headers or {})}
        with self._place.errors(method, key):
            response = self._client._execute(method, self._bucket, self._name(key), body=body, headers=headers)
            if method != "DELETE":
                etag_of(response.headers)  # seen here, where its lack is explained
            return response

    def _put_conditionally(self, key: str, data: bytes, condition: dict[str, str]) -> str | None:
        """Etag of `data` once the key holds it, or None when the condition failed."""
        for conflict in range(_MAX_CONFLICTS):
            try:
                return etag_of(self.request("PUT", key, body=data, headers=condition).headers)
            except ConditionFailedError:
                break
            except NotFoundError:  # If-Match on an absent object
                return None
            except ConflictError:
                time.sleep(random.uniform(0, 0.05 * 2**conflict))  # noqa: S311 - jitter, no secret
        else:
            raise UnavailableError(f"{self._where}: {key} is being written by others without end")
        # The condition also fails for the repetition of our own write whose reply was lost.
        try:
            stored, etag = self.get_with_etag(key)
        except NotFoundError:
            return None
        return etag if stored == data else None

    @contextmanager
    def _documents(self, method: str, key: str) -> Iterator[None]:
        """As `Place.errors`, for what the SDK reads documents of."""
        with self._place.errors(method, key):
            try:
                yield
            except ValueError as error:
                if not str(error).startswith("XML element"):
                    raise
                raise NoS3ReplyError from error  # one that says something else

    def _name(self, key: str) -> str:
        return self._prefix + check_path(key)

    def _info(self, item: Any) -> ObjectInfo:
        modified_time = item.last_modified.timestamp() if item.last_modified else 0.0
        key = item.object_name.removeprefix(self._prefix)
        return ObjectInfo(key, item.size, item.etag.strip('"'), modified_time)
