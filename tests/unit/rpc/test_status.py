import base64
import pickle
import string
from dataclasses import fields
from urllib.parse import quote

import grpc
import pytest

from madpo import errors
from madpo.errors import FieldViolation, MadpoError
from madpo.rpc.status import CODES, from_rpc_error, to_status


def example(kind: type[MadpoError]) -> MadpoError:
    """An error of a kind with everything it can carry."""
    if issubclass(kind, errors.InvalidArgumentError):
        return kind("tau must be > 0", [FieldViolation("spec.tau", "must be > 0"), FieldViolation("spec.beta", "no")])
    if kind is errors.OverloadedError:
        return errors.OverloadedError("queue is full", 1.25)
    if kind is errors.NonFiniteError:
        return errors.NonFiniteError("loss is NaN", ["pair-1", "pair-2"])
    return kind("what, which, expected, and what to do")


def all_kinds() -> list[type[MadpoError]]:
    found, queue = [], list(MadpoError.__subclasses__())
    while queue:
        kind = queue.pop()
        if kind.__module__ == errors.__name__:
            found.append(kind)
        queue += kind.__subclasses__()
    return found


def received(error: MadpoError) -> MadpoError:
    """The error as a client sees it after the wire."""
    code, message, trailers = to_status(error, request_id="r-1")
    metadata = grpc.aio.Metadata(*trailers)
    return from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details=message))


@pytest.mark.parametrize("kind", all_kinds())
def test_every_error_has_a_code_and_comes_back_as_what_it_was(kind):
    error = example(kind)

    back = received(error)

    assert kind in CODES
    assert type(back) is kind
    assert vars(back) == vars(error)
    assert str(back) == ("internal error, request r-1" if kind is errors.InternalError else str(error))


@pytest.mark.parametrize("kind", all_kinds())
def test_every_error_survives_pickling(kind):
    error = example(kind)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is kind
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_an_overload_without_a_hint_forbids_retries():
    _, _, trailers = to_status(errors.OverloadedError("the request can never fit"), request_id="r")

    assert dict(trailers)["grpc-retry-pushback-ms"] == "-1"
    assert received(errors.OverloadedError("x")).retry_after_s is None


def test_an_internal_error_tells_clients_the_request_and_nothing_else():
    _, message, trailers = to_status(errors.InternalError("secret path /home/x"), request_id="r-7")

    assert "r-7" in message
    assert not any(b"secret" in value for _, value in trailers if isinstance(value, bytes))


def test_a_failure_that_is_not_ours_is_mapped_by_its_code():
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="gone")

    assert isinstance(from_rpc_error(error), errors.UnavailableError)


def test_violations_are_plain_data():
    assert [field.name for field in fields(FieldViolation)] == ["field", "description"]


@pytest.mark.parametrize("character", ["a", "%", "\u00e4", "\u4e2d", "\U0001f600", "\ud83d"])
def test_an_error_of_any_length_fits_into_the_trailers_of_a_call(character: str) -> None:
    violations = [FieldViolation(f"row {row}.{character * 900}", character * 900) for row in range(200)]
    error = errors.InvalidArgumentError(character * 100_000, violations)

    _, message, trailers = to_status(error, request_id="r" * 64)

    packed = sum(len(base64.b64encode(value)) for _, value in trailers if isinstance(value, bytes))
    assert len(quote(message, safe=string.printable, errors="replace")) + packed < 8000
    assert message.startswith(character.replace("\ud83d", "?") * 100)
