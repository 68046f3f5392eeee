"""The identity of a run as plain JSON values, and the check that files on disk belong to it."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daguerre.atomic_io import atomic_write
from daguerre.cpu_threads import set_threads
from daguerre.errors import DaguerreError, join_names
from daguerre.weights.tensors.safetensors import read_json

MAX_SHOWN = 80  # characters of a value in a message


def fingerprint(*values: Any) -> str:
    """A short hash of JSON-able values, for cache file names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]


def to_plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values after a JSON round trip: tuples become lists, paths become text."""
    return json.loads(json.dumps(values, default=str))


def record_run(
    out: Path, recipe: str, source: str, *, size: int, seed: int, base: str | None = None, threads: int | None = None, **more: Any
) -> None:
    """Write the run's identity and its number of CPU threads to `out/recipe.json`.

    A resumed run computes with the recorded number of threads, unless `threads` requests another one.

    Raises:
        DaguerreError: the directory belongs to another run, or `threads` is out of range.
    """
    path, identity = out / "recipe.json", {"recipe": recipe, "source": source, "size": size, "seed": seed, "base": base}
    before = read_json(path) if path.is_file() else {}
    if before:
        require_same({name: before.get(name) for name in identity}, identity, out)
    recorded = before.get("threads") if type(before.get("threads")) is int else None
    used = set_threads(threads, recorded)
    if recorded not in (None, used):
        print(f"daguerre: {used} threads; the run in {out} had {recorded} so far, so its results differ by rounding", file=sys.stderr)
    with atomic_write(path) as file:  # every process writes the same
        file.write(json.dumps(identity | more | {"threads": used}, indent=1, default=str).encode())


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compare the identity that was saved at `path` with that of the current run.

    Raises:
        DaguerreError: they differ; the message names each value that does.
    """
    if differing := _differences(to_plain_values(before), to_plain_values(now), ""):
        raise DaguerreError(
            f"{path} belongs to a run with {'; '.join(differing)}. Use the same values to resume it, or choose another --out."
        )


def _differences(before: Any, now: Any, name: str) -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = {**before, **now}
        return [line for key in keys for line in _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now) and any(isinstance(item, dict) for item in before):
        return [line for index, pair in enumerate(zip(before, now, strict=True)) for line in _differences(*pair, f"{name}.{index}")]
    if before != now and isinstance(before, str) and isinstance(now, str) and "\n" in before:  # a list of shards
        old, new = before.splitlines(), now.splitlines()
        gone, added = (join_names(set(one) - {*other}) or "nothing more" for one, other in ((old, new), (new, old)))
        return [f"{name} {gone}, not {added}"]
    return [] if before == now else [f"{name} {_shorten(before)}, not {_shorten(now)}"]


def _shorten(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
