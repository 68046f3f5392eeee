"""What a run is, as plain values, and whether what lies on the disk belongs to it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daguerre.errors import DaguerreError

LONGEST = 80  # characters of a value that a message shows


def to_plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON gives them back: tuples are lists, paths are text."""
    return json.loads(json.dumps(values, default=str))


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Compare what was written at `where` with what a run is now.

    Raises:
        DaguerreError: they differ; only the values that do are named.
    """
    if differing := _differences(to_plain_values(before), to_plain_values(now), ""):
        raise DaguerreError(
            f"{where} belongs to a run with {'; '.join(differing)}. Give the same values to go on with it, or choose another --out."
        )


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        inside = {**before, **now}
        return [line for key in inside for line in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and any(isinstance(each, dict) for each in before):
        return [line for index, pair in enumerate(zip(before, now, strict=True)) for line in _differences(*pair, f"{name}.{index}")]
    return [] if before == now else [f"{name} {_shown(before)}, not {_shown(now)}"]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
