"""Tensors of any checkpoint, told apart by its content: safetensors, pickle, the index of several files, or a folder of parts.

Opening reads the header alone and checks every claim in it; tensors are private maps of the file, and its bytes are read when they
are used. Format: https://github.com/huggingface/safetensors ("Format").
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.errors import DaguerreError, join_names
from daguerre.weights.catalog import INDEX
from daguerre.weights.diffusers.folder_names import NETWORK_FOLDERS, PART_ALIASES, PART_BY_CLASS, SCHEDULER_FOLDERS, WEIGHT_STEMS
from daguerre.weights.tensors.pickle import LEGACY_START, PickledFile, mapped_bytes, typed
from daguerre.weights.tensors.safetensors import read_json, to_compute_layout, unreadable

CONFIGS = "daguerre.configs"  # the metadata where a file of ours keeps what shapes cannot tell: part -> its config, as JSON
MAX_HEADER = 100 << 20  # the format's own limit
SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
# First bytes of what people take for a checkpoint, and what to do then.
NOT_CHECKPOINTS = {
    b"version https://git-lfs": "a pointer to a large file that was not fetched; run `git lfs pull`",
    b"<": "a web page, so the download went wrong; fetch it again",
    b"GGUF": "a GGUF file, which is not read; take the .safetensors of the same model",
    b"\x89HDF": "a Keras file, which is not read; take the .safetensors of the same model",
}


@dataclass(frozen=True)
class TensorFile:
    """An opened checkpoint. shapes: every tensor on the meta device, by the file's own names; in a folder of parts behind
    `PART/`. container: safetensors, pickle, sharded or folder."""

    path: Path
    container: str
    shapes: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    tensor: Callable[[str], Tensor]

    def read(self, names: Iterable[str] | None = None, release: Callable[[Tensor], None] | None = None) -> dict[str, Tensor]:
        """Some tensors, or all, as maps of the file.

        release: is told of each once it was looked through, so that no more than one need be in memory.

        Raises:
            DaguerreError: numbers that are not finite; lists the tensors that hold them.
        """
        tensors, wrong = {name: self.tensor(name) for name in (self.shapes if names is None else names)}, []
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                wrong.append(name)
            if release is not None:
                release(tensor)
        self._refuse(wrong)
        return tensors

    def to_compute_layout(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors where and as a network computes with them (see `files.laid_out`), one after the other: the file and a copy of it
        in another dtype are never in memory together.

        Raises:
            DaguerreError: numbers that are not finite; lists the tensors that hold them.
        """
        tensors, wrong = {}, []
        for name in self.shapes:
            tensor = self.tensor(name)
            if not is_finite(tensor):
                wrong.append(name)
            tensors[name] = to_compute_layout(tensor, device, dtype, mapped=True)
        self._refuse(wrong)
        return tensors

    def _refuse(self, wrong: list[str]) -> None:
        if wrong:
            raise DaguerreError(
                f"'{self.path}' holds NaN or infinity in {len(wrong)} tensors ({join_names(wrong)}): it is damaged, or its training diverged. "
                "Take another file of the model."
            )


def open_tensors(path: str | Path, *, variant: str | None = None) -> TensorFile:
    """Open a checkpoint: a .safetensors file, a pickled .ckpt or .pt, a `*.safetensors.index.json` with its shards beside it, or a folder.

    variant: of a folder's files, such as "fp16"; None: the full ones, or the half-precision ones where there are no others.

    Raises:
        DaguerreError: there is no such file, it is of another kind, or its header does not hold; lists every fault.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, variant)
    if path.suffix == ".json" and ".index" in path.name:
        return _open_shards(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise unreadable(path, error) from error
    for sign, what in NOT_CHECKPOINTS.items():
        if start.lstrip().startswith(sign):
            raise DaguerreError(f"'{path}' is no checkpoint but {what}.")
    if start.startswith((b"PK\x03\x04", LEGACY_START)):
        pickled = PickledFile(path)
        shapes = {name: torch.empty(ref.shape, dtype=ref.dtype, device="meta") for name, ref in pickled.tensors.items()}
        return TensorFile(path, "pickle", shapes, pickled.metadata, pickled.tensor)
    return _open_safetensors(path)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:
        tensor = tensor.half()
    low, high = torch.aminmax(tensor)  # passes NaN on, in one pass and without another tensor of that size
    return isfinite(low.item()) and isfinite(high.item())


def _open_safetensors(path: Path) -> TensorFile:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or not 2 <= length <= MAX_HEADER or file.read(1) != b"{":
            raise DaguerreError(f"'{path}' is neither a safetensors file nor a pickled checkpoint; those are the kinds that can be opened.")
        if 8 + length > size:
            raise DaguerreError(f"'{path}' is cut short inside its header: {size} bytes of {8 + length}. Fetch it again.")
        file.seek(8)
        text = file.read(length)
    try:
        pairs = json.loads(text.decode(), object_pairs_hook=_reject_duplicate_keys)
    except (ValueError, RecursionError) as error:
        raise DaguerreError(f"'{path}' has a header that cannot be read ({error}). Fetch or save it again.") from error
    metadata = pairs.pop("__metadata__", {})
    places, faults = {}, []
    for name, entry in pairs.items():
        try:
            if not name.isprintable():
                raise ValueError("its name holds what cannot be shown")
            places[name] = _place(entry, size - 8 - length)
        except (ValueError, TypeError, KeyError) as error:
            faults.append(f"{name[:80] if name.isprintable() else ascii(name[:80])}: {error}")
    for before, after in pairwise(sorted(places, key=lambda name: places[name][2:])):
        if places[after][2] < places[before][3]:
            faults.append(f"{after[:80]} overlaps {before[:80]}")
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise DaguerreError(f"'{path}' is damaged in {len(faults)} tensors: {shown}. Fetch or save it again.")
    raw: list[Tensor] = []

    def tensor(name: str) -> Tensor:
        if not raw:
            raw.append(mapped_bytes(path))
        dtype, shape, start, end = places[name]
        return typed(raw[0][8 + length + start : 8 + length + end], dtype).view(shape)

    shapes = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (dtype, shape, _, _) in places.items()}
    clean = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
    return TensorFile(path, "safetensors", shapes, clean, tensor)


def _reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _place(entry: Mapping[str, Any], room: int) -> tuple[torch.dtype, tuple[int, ...], int, int]:
    """Type, shape, start and end of a header's entry."""
    if entry["dtype"] not in SAFETENSORS_DTYPES:
        raise ValueError(f"its type {entry['dtype']!r} is unknown")
    dtype, shape, (start, end) = SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
    counts = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, start, end))
    if not counts or len(shape) > 16 or prod(n or 1 for n in shape) >= 1 << 48:  # torch reckons with empty shapes, too
        raise ValueError("its shape or place are no counts")
    if end > room:
        raise ValueError(f"its last {end - max(start, room)} bytes are missing, the file is cut short")
    if end - start != prod(shape) * dtype.itemsize:
        raise ValueError(f"shape {list(shape)} of {entry['dtype']} needs {prod(shape) * dtype.itemsize} bytes, and it has {end - start}")
    return dtype, shape, start, end


def _shards(index: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """Tensor to shard, and shard to file. A shard lies beside its index, whatever the index says."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        raise DaguerreError(f"'{index}' lists no shards: its weight_map is missing.")
    return where, {shard: index.parent / Path(shard).name for shard in sorted(set(where.values()))}


def _open_shards(index: Path) -> TensorFile:
    where, paths = _shards(index)
    lost = [path.name for path in paths.values() if not path.is_file()]
    if lost:
        raise DaguerreError(f"'{index}' needs {len(lost)} shards that are not beside it: {join_names(lost)}. Fetch them, too.")
    files = {shard: _open_safetensors(path) for shard, path in paths.items()}
    missing = [name for name, shard in where.items() if name not in files[shard].shapes]
    if missing:
        raise DaguerreError(
            f"'{index}' names {len(missing)} tensors that are not in their shards: {join_names(missing)}. Fetch the shards again."
        )
    shapes = {name: files[shard].shapes[name] for name, shard in where.items()}
    metadata = {key: value for file in files.values() for key, value in file.metadata.items()}
    return TensorFile(index, "sharded", shapes, metadata, lambda name: files[where[name]].tensor(name))


def _open_folder(folder: Path, variant: str | None) -> TensorFile:
    """A model's folder, or the folder of one part."""
    config = folder / "config.json"
    if config.is_file():
        whole = open_tensors(weights_in(folder, variant))
        said = read_json(config)
        part = PART_BY_CLASS.get(str(said.get("_class_name")), "text_encoder")
        return TensorFile(folder, "folder", whole.shapes, {**whole.metadata, CONFIGS: json.dumps({part: said})}, whole.tensor)
    places = {part: place for part in NETWORK_FOLDERS if ((place := part_folder(folder, part)) / "config.json").is_file()}
    parts = {part: open_tensors(weights_in(place, variant)) for part, place in places.items()}
    if not parts:
        raise DaguerreError(
            f"'{folder}' is not a model: a model is a folder that holds {', '.join(NETWORK_FOLDERS)}, each with its config.json."
        )
    said = {part: read_json(place / "config.json") for part, place in places.items()}
    beside = {"model_index": folder / INDEX} | {name: folder / name / "scheduler_config.json" for name in SCHEDULER_FOLDERS}
    said |= {name: read_json(path) for name, path in beside.items() if path.is_file()}
    shapes = {f"{part}/{name}": shape for part, file in parts.items() for name, shape in file.shapes.items()}

    def tensor(name: str) -> Tensor:
        part, _, inner = name.partition("/")
        return parts[part].tensor(inner)

    return TensorFile(folder, "folder", shapes, {CONFIGS: json.dumps(said)}, tensor)


def part_folder(folder: Path, part: str) -> Path:
    """Where a part of a model lies in its folder."""
    other = folder / PART_ALIASES.get(part, part)
    return other if other.is_dir() else folder / part


def weights_in(folder: Path, variant: str | None = None) -> Path:
    """The file of a part's weights, or the index of its shards.

    Raises:
        DaguerreError: there is none of that variant; tells those there are.
    """
    for tail in (f".{variant}",) if variant else ("", ".fp16"):
        for stem in WEIGHT_STEMS:
            for name in (f"{stem}{tail}.safetensors", f"{stem}.safetensors.index{tail}.json", f"{stem}{tail}.safetensors.index.json"):
                if (folder / name).is_file():
                    return folder / name
        for stem in WEIGHT_STEMS:
            if (folder / f"{stem}{tail}.bin").is_file():
                return folder / f"{stem}{tail}.bin"
    there = join_names(
        file.name for file in folder.glob("*") if file.suffix in (".safetensors", ".bin", ".json") and file.name != "config.json"
    )
    wanted = f"of the variant {variant!r} " if variant else ""
    raise DaguerreError(f"'{folder}' holds no weights {wanted}that can be read; there is {there or 'nothing'}.")


def weight_files(path: Path, variant: str | None = None) -> tuple[Path, ...]:
    """The files that hold the tensors of what `open_tensors` opens at this path, found without opening them.

    Raises:
        DaguerreError: there are none.
    """
    if path.is_dir():
        places = [part_folder(path, part) for part in NETWORK_FOLDERS]
        folders = [path] if (path / "config.json").is_file() else sorted(place for place in places if (place / "config.json").is_file())
        return tuple(each for folder in folders for each in weight_files(weights_in(folder, variant)))
    if path.suffix == ".json":
        return tuple(_shards(path)[1].values())
    return (path,)
