"""What a package's modules declare, found by looking at every one of them."""

import pkgutil
from collections.abc import Collection, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

T = TypeVar("T")


def modules_of(package: str, *, besides: Collection[str] = ()) -> Iterator[ModuleType]:
    """The modules directly in a package, by name, but for those named."""
    for module in pkgutil.iter_modules(import_module(package).__path__):
        if module.name not in besides:
            yield import_module(f"{package}.{module.name}")


def declarations(package: str, sort: type[T], *, besides: Collection[str] = ()) -> Iterator[T]:
    """Values of a type that the modules of a package have at their top."""
    for module in modules_of(package, besides=besides):
        yield from (value for value in vars(module).values() if isinstance(value, sort))


def declared_by_name(package: str, sort: type[T], *, besides: Collection[str] = ()) -> dict[Any, T]:
    """The same by their attribute `name`, which no two may share."""
    found: dict[Any, T] = {}
    for value in declarations(package, sort, besides=besides):
        name = value.name  # type: ignore[attr-defined]
        assert found.setdefault(name, value) is value, f"two modules of {package} declare {name}"
    return found
