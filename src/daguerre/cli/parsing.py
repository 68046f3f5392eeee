"""From command-line arguments to an option dataclass, and every usage error as one sentence with exit code 2."""

import glob
import io
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from daguerre.atomic_io import expand_user, is_address
from daguerre.errors import DaguerreError

T = TypeVar("T")
KINDS = {int: ("INT", "a whole number"), float: ("FLOAT", "a number"), str: ("TEXT", "a text"), Path: ("PATH", "a path")}
REGISTRY = ConstructorRegistry()


class UsageError(DaguerreError):
    """The command line, or a value in it, is wrong. The command exits with 2; every other DaguerreError exits with 1."""


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn each DaguerreError of the block into a UsageError: around everything that checks values before the work begins."""
    try:
        yield
    except DaguerreError as error:
        raise UsageError(str(error)) from error


def parse_options(kind: type[T], arguments: Sequence[str], command: str) -> T:
    """Parse arguments into the dataclass `kind`; `command` is the name in the help text, such as "txt2img" or "train emoji".

    Raises:
        UsageError: an option is unknown or missing, or a value is wrong; names it.
        SystemExit: with code 0, after `--help`.
    """
    prog, box = f"daguerre {command}", io.StringIO()
    try:
        with usage_errors(), redirect_stderr(box):
            return tyro.cli(kind, args=list(arguments), prog=prog, registry=REGISTRY, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as stop:
        if stop.code in (None, 0):
            raise
        raise UsageError(f"{_sentence(box.getvalue())}{_dash_hint(box.getvalue(), arguments)} `{prog} --help` lists all options.") from None


def is_image_source(data: str | Path) -> bool:
    """Whether it is an address, or there is such a directory or pattern of shards, as `data.catalog.open_image_files` takes them."""
    if is_address(data):
        return True
    path = expand_user(data)
    return path.is_dir() or (path.suffix == ".tar" and any(glob.iglob(str(path))))


@REGISTRY.primitive_rule
def _plain_value(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Numbers, texts and paths with plain metavars and messages; an optional one (`int | None`) has no value when it is not given."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType] if get_origin(info.type) in (Union, UnionType) else [info.type]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        return None
    metavar, noun = KINDS[kinds[0]]
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=partial(_convert, kinds[0], noun),
        is_instance=lambda value: value is None or isinstance(value, (*kinds, int) if float in kinds else kinds[0]),
        str_from_instance=lambda value: ["none" if value is None else str(value)],
    )


def _convert(kind: type, noun: str, values: list[str]) -> Any:
    try:
        return expand_user(values[0]) if kind is Path else kind(values[0])
    except ValueError:
        raise ValueError(f"{values[0]!r} is not {noun}.") from None


def _sentence(box: str) -> str:
    """The message in a box that tyro draws, without the help texts below its first rule; without UTF-8 the box is only indented."""
    lines = [line.rstrip(" │") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    title, *rest = lines if not _is_rule(lines[1]) else [lines[0], *lines[2:]]
    rest = [line[2:] for line in rest]
    end = next((i for i, line in enumerate(rest) if _is_rule(line)), len(rest))
    body, hints = rest[:end], rest[end:]
    if "Required" in title:
        return f"Missing: {', '.join(line.strip() for line in body if re.match(r' {4}[^ ]', line))}."
    text = " ".join(line.strip() for line in body).replace("Expected 1 values", "Expected 1 value")
    if "Unrecognized" in title:
        tokens = text.removeprefix("Unrecognized options: ").split(", ")
        unknown = [token for token in tokens if token.startswith("-")]
        hint = next((line.strip(" ,").split()[0] for line in hints if re.match(r" {4}-", line)), None)
        found = f"There is no option {', '.join(unknown)}." if unknown else f"Unexpected argument {', '.join(tokens)}."
        return f"{found} Did you mean {hint!r}?" if hint and unknown else found
    text = re.sub(r"^Error parsing (\S+?):", r"\1:", text)
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _dash_hint(box: str, arguments: Sequence[str]) -> str:
    """How to give a text that begins with a dash, if one may be meant."""
    for option, value in pairwise(arguments):
        if "Missing value" in box and option.startswith("--") and value.startswith("-") and not value.startswith("--"):
            return f" For a value that begins with a dash, write {shlex.quote(f'{option}={value}')}."
    if "Unrecognized" in box and (text := next((each for each in arguments if re.match(r"-[^-].* ", each)), None)):
        return f" For a text that begins with a dash, put -- before it, after all options: -- {shlex.quote(text)}."
    return ""


def _is_rule(line: str) -> bool:
    return bool(line.strip()) and set(line.strip()) <= set("─-╭╮╰╯")
