"""Helpers to read the fields of a `config.json` or `scheduler_config.json`."""

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from daguerre.errors import DaguerreError

Json = dict[str, Any]
K = TypeVar("K")
V = TypeVar("V")


def choose(name: K, table: Mapping[K, V], what: str, where: object) -> V:
    """Look up a name in a table. Raises DaguerreError that lists the names if it is unknown."""
    if name not in table:
        raise DaguerreError(f"'{where}' asks for the {what} {name!r}; supported are {', '.join(map(repr, table))}.")
    return table[name]


def check_supported(given: Mapping[str, Any], supported: Mapping[str, tuple[object, ...]], where: object) -> None:
    """Raise DaguerreError if a field has a value that is not supported. The first supported value is the field's default."""
    for name, values in supported.items():
        if given.get(name, values[0]) not in values:
            raise DaguerreError(f"'{where}' sets {name} to {given[name]!r}; only {values[0]!r} is supported.")


def per_level(value: Any, levels: int) -> tuple[Any, ...]:
    """A field that has one value per level, or one for all levels."""
    return tuple(value) if isinstance(value, list | tuple) else (value,) * levels


def same_for_all_levels(value: Any, name: str, where: object) -> int:
    """A field that must be the same for all levels. Raises DaguerreError if it is not."""
    values = set(per_level(value, 1))
    if len(values) > 1:
        raise DaguerreError(f"'{where}' gives each level its own {name}, {value}; only one value for all levels is supported.")
    return cast("int", values.pop())
