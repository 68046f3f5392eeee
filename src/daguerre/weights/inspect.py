"""Describe a checkpoint: family, parts, prediction type, dtype, parameters, and every name that does not fit.

    inspect("model.safetensors").json()

Only headers are read, unless hashes are requested.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from daguerre.errors import DaguerreError
from daguerre.models.vq_model import VQModel
from daguerre.nn.meta import shapes_only
from daguerre.weights.catalog import INDEX, LATENT_PRIOR
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.hashing import file_hash, files_hash
from daguerre.weights.loading import resolve_path
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import DetectedModel, attachment_kind, detect, unsupported_kind
from daguerre.weights.tensors.reader import CONFIGS, open_tensors, weight_files, weights_in
from daguerre.weights.tensors.safetensors import config_errors, read_json


@dataclass(frozen=True)
class PartReport:
    """One network: its class, the dtype of most parameters, the number of parameters and of tensors."""

    network: str
    dtype: str
    parameters: int
    tensors: int

    @classmethod
    def of(cls, network: str, shapes: Mapping[str, Tensor]) -> "PartReport":
        return cls(network, _dtype(shapes.values()), _parameters(shapes.values()), len(shapes))


@dataclass(frozen=True)
class InspectReport:
    """The result of `inspect`. Keys have the names of the folder layout; unmatched ones of no part have the file's own names.

    prediction_type: epsilon, v or x0; None if unknown. prediction_from: its source.
    question: what the user has to specify to load the model, if anything. unsupported: what it is, if it cannot be loaded here.
    sha256: of each file, if requested. identity: of all files together; images record it.
    """

    path: str
    container: str
    family: str
    task: str | None
    prediction_type: str | None
    prediction_from: str | None
    dtype: str
    parameters: int
    bytes: int
    parts: dict[str, PartReport]
    ema: str
    metadata: dict[str, str]
    unmatched_keys: list[str]
    missing_keys: list[str]
    wrong_shapes: list[str]
    ignored_keys: int
    question: str | None = None
    unsupported: str | None = None
    sha256: dict[str, str] = field(default_factory=dict)
    identity: str | None = None

    def json(self) -> str:
        """As a JSON object."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def lines(self) -> list[str]:
        """As readable text."""
        heads = {
            "family": f"{self.family}, {self.task}" if self.task else self.family,
            "prediction": f"{self.prediction_type or 'unknown'} ({self.prediction_from})" if self.prediction_from else None,
            "container": f"{self.container}, {self.bytes / 1e9:.2f} GB, {self.dtype}, {self.parameters / 1e6:.1f} million parameters",
            "ema": {"unused": "in addition to the weights", "used": "instead of the weights"}.get(self.ema),
            **{name: f"{p.network}, {p.dtype}, {p.parameters / 1e6:.1f} million in {p.tensors} tensors" for name, p in self.parts.items()},
            "ignored": f"{self.ignored_keys} keys, intentionally" if self.ignored_keys else None,
            **{f"sha256 {name}": digest for name, digest in self.sha256.items()},
            "identity": self.identity if len(self.sha256) > 1 else None,
            "question": self.question,
            "unsupported": self.unsupported and f"this is {self.unsupported}",
        }
        lines = [f"{name:<16} {value}" for name, value in heads.items() if value]
        for what, keys in (("missing", self.missing_keys), ("unmatched", self.unmatched_keys), ("wrong shape", self.wrong_shapes)):
            lines += [f"{what:<16} {key}" for key in keys]
        return lines


def inspect(path: str | Path, *, hashed: bool = False, variant: str | None = None) -> InspectReport:
    """Describe a checkpoint by its header: a single file, the index of shards, a folder, an embedded model, or a Hub id.

    Args:
        hashed: also compute the SHA-256 of each file, which reads all of it.
        variant: of a folder's files, such as "fp16".

    Raises:
        DaguerreError: it is not a checkpoint, or its header is damaged.
    """
    path = resolve_path(path, offline=False, variant=variant)
    if (path / INDEX).is_file() and read_json(path / INDEX).get("_class_name") == LATENT_PRIOR:
        return _latent_prior(path, hashed)
    file = open_tensors(path, variant=variant)
    question = None
    try:
        detected = detect(file)
        errors = detected.key_errors()
    except DaguerreError as error:
        detected, question = DetectedModel(file, split_components(file.shapes)), str(error)
        errors = {"missing": [], "unmatched": detected.contents.unmatched, "of another shape": []}
    if detected.family and detected.family.name == "sd2" and detected.prediction is None:
        question = "Does it predict v (trained at 768 pixels) or epsilon (the 512-pixel base)? Give it as `prediction` when loading."
    kind = attachment_kind(file.shapes) if detected.unet is None else None
    if unsupported := unsupported_kind(file):
        kind, question = "unsupported", None
    if kind is not None:
        errors["unmatched"] = []  # names of an adapter are checked when it is attached
    files = weight_files(file.path, variant)
    return InspectReport(
        path=str(path),
        container=file.container,
        family=detected.family.name
        if detected.family
        else kind or "+".join(part.kind.network for part in detected.contents.parts.values()) or "unknown",
        task=detected.task,
        prediction_type=detected.prediction,
        prediction_from=detected.prediction_from or None,
        dtype=_dtype(file.shapes.values()),
        parameters=_parameters(file.shapes.values()),
        bytes=sum(each.stat().st_size for each in files),
        parts={name: PartReport.of(part.kind.network, part.original) for name, part in detected.contents.parts.items()},
        ema=detected.contents.ema,
        metadata={key: value for key, value in file.metadata.items() if key != CONFIGS},
        unmatched_keys=errors["unmatched"],
        missing_keys=errors["missing"],
        wrong_shapes=errors["of another shape"],
        ignored_keys=len(detected.contents.ignored),
        question=question,
        unsupported=unsupported,
        **_hashes(files, file.path) if hashed else {},
    )


def _latent_prior(folder: Path, hashed: bool) -> InspectReport:
    """Describe a first stage with a prior over its codes."""
    from daguerre.weights.diffusers.load import modernize_key
    from daguerre.weights.diffusers.prior import FIRST_STAGE_FOLDER, MAP_FOLDER, PRIOR_FOLDER, build_untrained
    from daguerre.weights.diffusers.vae_config import vq_config

    errors: dict[str, list[str]] = {"missing": [], "unmatched": [], "of another shape": []}
    parts: dict[str, PartReport] = {}
    shapes: dict[str, Tensor] = {}
    for part in (FIRST_STAGE_FOLDER, PRIOR_FOLDER, MAP_FOLDER):
        if part == MAP_FOLDER and not (folder / part).is_dir():
            continue
        where = folder / part / CONFIG_FILE
        given = read_json(where)
        with config_errors(where), shapes_only():
            wanted = (build_untrained(given, where) if part == PRIOR_FOLDER else VQModel(vq_config(given, where))).state_dict()
        found = {modernize_key(name): tensor for name, tensor in open_tensors(weights_in(folder / part)).shapes.items()}
        errors["missing"] += [f"{part}/{name}" for name in wanted.keys() - found.keys()]
        errors["unmatched"] += [f"{part}/{name}" for name in found.keys() - wanted.keys()]
        errors["of another shape"] += [f"{part}/{n}" for n in found.keys() & wanted.keys() if found[n].shape != wanted[n].shape]
        parts[part] = PartReport.of(str(given["_class_name"]), found)
        shapes |= {f"{part}/{name}": tensor for name, tensor in found.items()}
    files = tuple(weights_in(folder / part) for part in parts)
    prefix = read_json(folder / INDEX).get("prefix", {}).get("kind", "none")
    return InspectReport(
        path=str(folder),
        container="folder",
        family="latent-prior",
        task="unconditional" if prefix == "none" else f"conditioned on {prefix}",
        prediction_type=None,
        prediction_from=None,
        dtype=_dtype(shapes.values()),
        parameters=_parameters(shapes.values()),
        bytes=sum(each.stat().st_size for each in files),
        parts=parts,
        ema="none",
        metadata={},
        unmatched_keys=sorted(errors["unmatched"]),
        missing_keys=sorted(errors["missing"]),
        wrong_shapes=sorted(errors["of another shape"]),
        ignored_keys=0,
        **_hashes(files, folder) if hashed else {},
    )


def _hashes(files: Sequence[Path], path: Path) -> dict[str, Any]:
    """The hash fields of a report; files are named relative to the model's folder."""
    root = path if path.is_dir() else path.parent
    named = {each.name if len(files) == 1 else str(each.relative_to(root)): file_hash(each) for each in files}
    return {"sha256": named, "identity": files_hash(files)}


def _dtype(tensors: Iterable[Tensor]) -> str:
    """The dtype of most elements, without the prefix `torch.`."""
    counts: Counter[Any] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.numel()
    return str(counts.most_common(1)[0][0]).removeprefix("torch.") if counts else "none"


def _parameters(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
