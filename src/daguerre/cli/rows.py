"""Tables of prompts, one request a row, from CSV, JSON lines or parquet; and which rows a share `i/n` of a fleet has.

A column has the name of a `Request` field. An empty cell has the value of the command's options.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from daguerre.cli.options import parse_interval
from daguerre.errors import DaguerreError, join_names, nearest
from daguerre.pipelines.request import Request, with_fields

NOT_IN_TABLES = ("task", "variation", "adapters", "control_images", "low_memory")
COLUMNS = ("id", *(each.name for each in fields(Request) if each.name not in NOT_IN_TABLES))
TABLE_FORMATS = (".csv", ".jsonl", ".parquet")
TRUE, FALSE = ("true", "yes", "1"), ("false", "no", "0")


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    number: counts from 1. id: its cell of the column `id`, else its number. values: cells that are not empty, by column.
    problem: what is wrong with the row, if it cannot be read; such a row fails, and the others continue.
    """

    number: int
    id: str
    values: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Table:
    """The rows of a table, and its columns that no request has."""

    rows: Sequence[TableRow]
    unused: Sequence[str]


def read_table(path: Path) -> Table:
    """Read a table; the suffix says its format.

    Raises:
        DaguerreError: the file cannot be read; it has no column "prompt" or no rows; a column is nearly the name of a field; two rows have
            one id.
    """
    read = {".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}.get(path.suffix.lower())
    if read is None:
        raise DaguerreError(f"'{path}' is no table that can be read; give a file that ends in {', '.join(TABLE_FORMATS)}.")
    try:
        cells = list(read(path))
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DaguerreError(f"Cannot read the table '{path}': {reason}; save it as UTF-8 text.") from error
    columns = dict.fromkeys(name for row in cells if isinstance(row, Mapping) for name in row)
    if "prompt" not in columns:
        raise DaguerreError(f"'{path}' has no rows with a column 'prompt'; its columns are {join_names(columns) or 'none'}.")
    unused = [name for name in columns if name not in COLUMNS]
    for name in unused:
        if near := nearest(name, [*COLUMNS, *NOT_IN_TABLES]):
            raise DaguerreError(f"The column {name!r} of '{path}' is no field of a request.{near} Rename or remove it.")
    rows = [_row(number, row) for number, row in enumerate(cells, 1)]
    first_with: dict[str, int] = {}
    for row in rows:
        if (first := first_with.setdefault(row.id, row.number)) != row.number:
            raise DaguerreError(f"The rows {first} and {row.number} of '{path}' have the same id {row.id!r}; ids must differ.")
    return Table(rows, unused)


def row_request(row: TableRow, defaults: Request) -> Request:
    """The request of a row; `defaults` has the values of the cells that are empty.

    Raises:
        DaguerreError: the row cannot be read, or a value is wrong; names it.
    """
    if row.problem is not None:
        raise DaguerreError(row.problem)
    return with_fields(defaults, {name: _value(name, cell) for name, cell in row.values.items() if name != "id"})


def _row(number: int, cells: Mapping[str, Any] | str) -> TableRow:
    if isinstance(cells, str):
        return TableRow(number, str(number), {}, f"The row is {cells}.")
    values = {name: cell for name, cell in cells.items() if name in COLUMNS and not _is_empty(cell)}
    return TableRow(number, str(values.get("id", number)), values)


def _is_empty(cell: Any) -> bool:
    return cell is None or cell == "" or cell != cell  # NaN is what data frames write for a missing number


def _value(name: str, cell: Any) -> Any:
    """The value of a cell: texts are read as the field's type, and whole numbers may be written as 20.0, as data frames do."""
    if name == "guidance_interval" and isinstance(cell, str):
        return parse_interval(cell)
    expected = get_type_hints(Request)[name]
    kinds = [kind for kind in (expected, *get_args(expected)) if kind in (bool, int, float)]
    if not kinds:
        return cell
    kind, text = kinds[0], str(cell).strip().lower()
    try:
        if kind is bool:
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text]
        if kind is float:
            return float(text)
        return int(text) if re.fullmatch(r"-?\d+", text) else int(text.removesuffix(".0"))
    except (ValueError, KeyError):
        noun = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise DaguerreError(f"{name} is {cell!r}; it must be {noun}.") from None


def _read_csv(path: Path) -> Iterator[Mapping[str, Any] | str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, restkey="", restval=None, strict=True):
            extra = row.pop("", None)
            yield f"longer than the header, by {extra}; put texts with commas in quotation marks" if extra else row


def _read_json_lines(path: Path) -> Iterator[Mapping[str, Any] | str]:
    with path.open(encoding="utf-8-sig") as file:
        for line in filter(str.strip, file):
            try:
                value = json.loads(line)
            except ValueError as error:
                value = f"no JSON: {error}"
            yield value if isinstance(value, dict | str) else f"no JSON object, but {line.strip()[:40]!r}"


def _read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DaguerreError("Parquet needs pyarrow; run `pip install 'daguerre[parquet]'`, or save the table as .csv or .jsonl.") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DaguerreError(f"Cannot read the table '{path}': {str(error).splitlines()[0]}") from error
