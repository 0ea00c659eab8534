"""What programs may call: a name or a parameter of the SDK changes only when that is meant."""

import difflib
import inspect
from pathlib import Path

import pytest

import madpo_client
from madpo_client import Client, JobHandle

LIST = Path(__file__).with_name("public_names.txt")
WHAT_TO_DO = """\
the public names of madpo_client are not those of {list}:

{difference}

Programs call these names. If the change is meant, change the list to match, and say in CHANGELOG.md under Unreleased
what was added, or what users of a removed or renamed name have to write instead."""


def parameters(function):
    """As in its definition, without annotations; `=...` for what has a default."""
    signature = inspect.signature(function)
    shown = []
    for parameter in signature.parameters.values():
        default = parameter.empty if parameter.default is parameter.empty else ...
        shown.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(signature.replace(parameters=shown, return_annotation=signature.empty)).replace("Ellipsis", "...")


def public_names(path, value):
    """A line for each attribute of an object, and for each method with its parameters."""
    for name in dir(value):
        if not name.startswith("_"):
            is_property = isinstance(inspect.getattr_static(value, name), property)
            is_method = not is_property and inspect.ismethod(getattr(value, name))
            yield f"{path}.{name}" + (parameters(getattr(value, name)) if is_method else "")


def found():
    """All public names, in the form of the list."""
    yield from (f"madpo_client.{name}" for name in sorted(madpo_client.__all__))
    yield f"Client{parameters(Client)}"
    with Client("127.0.0.1:1") as client:
        yield from public_names("Client", client)
        yield from public_names("Client.datasets", client.datasets)
        yield from public_names("Client.models", client.models)
        yield from public_names("Client.jobs", client.jobs)
        yield from public_names("Client.access", client.access)
        yield from public_names("Client.retention", client.retention)
        yield from public_names("Client.store", client.store)
        yield from public_names("JobHandle", JobHandle(client._session, None))


def test_public_names_are_those_that_were_promised():
    promised = LIST.read_text().splitlines()
    difference = "\n".join(difflib.unified_diff(promised, list(found()), "promised", "found", lineterm="", n=0))

    assert all(hasattr(madpo_client, name) for name in madpo_client.__all__)
    if difference:
        pytest.fail(WHAT_TO_DO.format(list=LIST.name, difference=difference), pytrace=False)
