"""Open a checkpoint of any container, recognised by its content: safetensors, pickle, an index of shards, or a folder of networks.

Opening reads and checks only the header. Tensors are private memory maps of the file; bytes are read on use.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.errors import DaguerreError, join_names
from daguerre.weights.catalog import INDEX, SHARED_FIRST_STAGES
from daguerre.weights.diffusers.folder_names import (
    NETWORK_FOLDERS,
    PART_ALIASES,
    PART_BY_CLASS,
    SCHEDULER_CONFIG_FILE,
    SCHEDULER_FOLDERS,
    find_weights,
)
from daguerre.weights.tensors.pickle import LEGACY_START, PickledFile
from daguerre.weights.tensors.safetensors import SafetensorsFile, read_json, to_compute_layout, unreadable

CONFIGS = "daguerre.configs"  # metadata key of our files for what shapes cannot express: part -> its config, as JSON
# First bytes of files that are often mistaken for a checkpoint, and what to do.
NOT_CHECKPOINTS = {
    b"version https://git-lfs": "a Git LFS pointer; run `git lfs pull` to download the file",
    b"<": "a web page, so the download failed; download it again",
    b"GGUF": "a GGUF file, which is not supported; use the .safetensors file of the same model",
    b"\x89HDF": "a Keras file, which is not supported; use the .safetensors file of the same model",
}


@dataclass(frozen=True)
class TensorFile:
    """An opened checkpoint.

    container: safetensors, pickle, sharded or folder.
    shapes: every tensor on the meta device, under the file's own names; in a folder of networks with the prefix `PART/`.
    tensor: returns a tensor by its name, as a memory map.
    """

    path: Path
    container: str
    shapes: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    tensor: Callable[[str], Tensor]

    def read(self, names: Iterable[str] | None = None, release: Callable[[Tensor], None] | None = None) -> dict[str, Tensor]:
        """Return some or all tensors as memory maps.

        release: called with each tensor after its check, so that at most one has to be in memory.

        Raises:
            DaguerreError: some values are not finite; lists the tensors.
        """
        tensors, not_finite = {name: self.tensor(name) for name in (self.shapes if names is None else names)}, []
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                not_finite.append(name)
            if release is not None:
                release(tensor)
        self._check_finite(not_finite)
        return tensors

    def to_compute_layout(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return all tensors on the device, in the dtype and layout of the computation (see `safetensors.to_compute_layout`).

        They are converted one after the other, so that the file and its copy are never in memory together.

        Raises:
            DaguerreError: some values are not finite; lists the tensors.
        """
        tensors, not_finite = {}, []
        for name in self.shapes:
            tensor = self.tensor(name)
            if not is_finite(tensor):
                not_finite.append(name)
            tensors[name] = to_compute_layout(tensor, device, dtype, mapped=True)
        self._check_finite(not_finite)
        return tensors

    def _check_finite(self, not_finite: list[str]) -> None:
        if not_finite:
            raise DaguerreError(
                f"'{self.path}' has NaN or infinity in {len(not_finite)} tensors ({join_names(not_finite)}): it is damaged, or its "
                "training diverged. Use another file of the model."
            )


def open_tensors(path: str | Path, *, variant: str | None = None) -> TensorFile:
    """Open a checkpoint: a .safetensors file, a pickled .ckpt or .pt, a `*.safetensors.index.json` next to its shards, or a folder.

    variant: of a folder's files, such as "fp16". Default: full precision, or half precision if there is nothing else.

    Raises:
        DaguerreError: the file is missing, of another format, or its header is damaged; lists every damaged tensor.
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
    for magic, description in NOT_CHECKPOINTS.items():
        if start.lstrip().startswith(magic):
            raise DaguerreError(f"'{path}' is no checkpoint but {description}.")
    if start.startswith((b"PK\x03\x04", LEGACY_START)):
        pickled = PickledFile(path)
        shapes = {name: torch.empty(ref.shape, dtype=ref.dtype, device="meta") for name, ref in pickled.tensors.items()}
        return TensorFile(path, "pickle", shapes, pickled.metadata, pickled.tensor)
    file = SafetensorsFile(path)
    return TensorFile(path, "safetensors", file.shapes, file.metadata, file.tensor)


def is_finite(tensor: Tensor) -> bool:
    """True if a tensor has neither NaN nor infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:
        tensor = tensor.half()
    low, high = torch.aminmax(tensor)  # propagates NaN, in one pass and without a copy
    return isfinite(low.item()) and isfinite(high.item())


def _shards(index: Path) -> tuple[dict[str, str], dict[str, Path]]:
    """Tensor -> shard, and shard -> file. Only the folder of the index is searched, whatever path the index gives."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise DaguerreError(f"'{index}' has no valid weight_map, so its shards are unknown. Download it again.")
    return weight_map, {shard: index.parent / Path(shard).name for shard in sorted(set(weight_map.values()))}


def _open_shards(index: Path) -> TensorFile:
    weight_map, paths = _shards(index)
    lost = [path.name for path in paths.values() if not path.is_file()]
    if lost:
        raise DaguerreError(f"'{index}' needs {len(lost)} shards that are not in its folder: {join_names(lost)}. Download them, too.")
    files = {shard: SafetensorsFile(path) for shard, path in paths.items()}
    missing = [name for name, shard in weight_map.items() if name not in files[shard].shapes]
    if missing:
        raise DaguerreError(
            f"'{index}' lists {len(missing)} tensors that are not in their shards: {join_names(missing)}. Download the shards again."
        )
    shapes = {name: files[shard].shapes[name] for name, shard in weight_map.items()}
    metadata = {key: value for file in files.values() for key, value in file.metadata.items()}
    return TensorFile(index, "sharded", shapes, metadata, lambda name: files[weight_map[name]].tensor(name))


def _open_folder(folder: Path, variant: str | None) -> TensorFile:
    """Open a model's folder, or the folder of one network."""
    config = folder / "config.json"
    if config.is_file():
        whole = open_tensors(weights_in(folder, variant))
        stored = read_json(config)
        part = PART_BY_CLASS.get(str(stored.get("_class_name")), "text_encoder")
        configs = {part: stored} | _read_configs({"model_index": folder / INDEX, "scheduler": folder / SCHEDULER_CONFIG_FILE})
        return TensorFile(folder, "folder", whole.shapes, {**whole.metadata, CONFIGS: json.dumps(configs)}, whole.tensor)
    folders = {part: path for part in NETWORK_FOLDERS if ((path := part_folder(folder, part)) / "config.json").is_file()}
    parts = {part: open_tensors(weights_in(path, variant)) for part, path in folders.items()}
    if not parts:
        raise DaguerreError(f"'{folder}' is not a model: a model folder has {', '.join(NETWORK_FOLDERS)}, each with a config.json.")
    stored = {part: read_json(path / "config.json") for part, path in folders.items()}
    stored |= _read_configs({"model_index": folder / INDEX, **{name: folder / name / SCHEDULER_CONFIG_FILE for name in SCHEDULER_FOLDERS}})
    shapes = {f"{part}/{name}": shape for part, file in parts.items() for name, shape in file.shapes.items()}

    def tensor(name: str) -> Tensor:
        part, _, inner = name.partition("/")
        return parts[part].tensor(inner)

    return TensorFile(folder, "folder", shapes, {CONFIGS: json.dumps(stored)}, tensor)


def _read_configs(paths: Mapping[str, Path]) -> dict[str, Any]:
    """The configs that exist, by name."""
    return {name: read_json(path) for name, path in paths.items() if path.is_file()}


def part_folder(folder: Path, part: str) -> Path:
    """The folder of a network in a model's folder."""
    alias = folder / PART_ALIASES.get(part, part)
    if alias.is_dir():
        return alias
    return SHARED_FIRST_STAGES.get(folder, folder / part) if part == "vae" else folder / part


def weights_in(folder: Path, variant: str | None = None) -> Path:
    """The file with a network's weights, or the index of its shards.

    Raises:
        DaguerreError: there is none of that variant; lists the files that exist.
    """
    if name := find_weights({file.name for file in folder.glob("*")}, variant):
        return folder / name
    suffixes = (".safetensors", ".bin", ".json")
    found = join_names(file.name for file in folder.glob("*") if file.suffix in suffixes and file.name != "config.json")
    wanted = f"of the variant {variant!r} " if variant else ""
    raise DaguerreError(f"'{folder}' has no weights {wanted}that can be read; it has {found or 'no weight files'}.")


def weight_files(path: Path, variant: str | None = None) -> tuple[Path, ...]:
    """The files with the tensors that `open_tensors` opens at this path, found without opening them.

    Raises:
        DaguerreError: there are none.
    """
    if path.is_dir():
        parts = sorted(part_folder(path, part) for part in NETWORK_FOLDERS)
        folders = [path] if (path / "config.json").is_file() else [part for part in parts if (part / "config.json").is_file()]
        return tuple(file for folder in folders for file in weight_files(weights_in(folder, variant)))
    if path.suffix == ".json":
        return tuple(_shards(path)[1].values())
    return (path,)
