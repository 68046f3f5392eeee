"""What a checkpoint says of itself: family, parts, prediction, precision, parameters, and every name that does not fit.

    inspect("model.safetensors").json()

Only headers are read, unless a hash is asked for.
"""

import json
import re
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
from daguerre.weights.original.components import split_components
from daguerre.weights.original.detect import DetectedModel, detect
from daguerre.weights.original.families import task_of
from daguerre.weights.tensors.reader import CONFIGS, open_tensors, weight_files, weights_in
from daguerre.weights.tensors.safetensors import config_errors, read_json

# What people keep beside checkpoints, by a name that only such a file holds.
ATTACHMENTS = {
    "controlnet": re.compile(r"control_model\.|zero_convs\.|controlnet_cond_embedding\.|controlnet_down_blocks\."),
    "lora": re.compile(r"lora_|.*\.lora_|.*[._]lora\.(up|down)|.*\.(hada|lokr)_"),
    "textual-inversion": re.compile(r"string_to_param\.|emb_params$|clip_[lg]$"),
}


@dataclass(frozen=True)
class PartReport:
    """One network: what it is, the precision of most of its numbers, how many there are, and in how many tensors."""

    network: str
    dtype: str
    parameters: int
    tensors: int

    @classmethod
    def of(cls, network: str, shapes: Mapping[str, Tensor]) -> "PartReport":
        return cls(network, _dtype(shapes.values()), _parameters(shapes.values()), len(shapes))


@dataclass(frozen=True)
class InspectReport:
    """The answer of `inspect`. Keys stand under the names of the folder layout; unmatched ones that belong to no part under the file's.

    prediction_type: epsilon, v or x0; None where the file does not say (`prediction_from` tells how it is known).
    question: what has to be told before the model can be opened, if anything.
    sha256: of each file, if asked for. identity: of all together, which pictures record.
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
    sha256: dict[str, str] = field(default_factory=dict)
    identity: str | None = None

    def json(self) -> str:
        """As a JSON object."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def lines(self) -> list[str]:
        """As text for people."""
        heads = {
            "family": f"{self.family}, {self.task}" if self.task else self.family,
            "prediction": f"{self.prediction_type or 'unknown'} ({self.prediction_from})" if self.prediction_from else None,
            "container": f"{self.container}, {self.bytes / 1e9:.2f} GB, {self.dtype}, {self.parameters / 1e6:.1f} million parameters",
            "average": {"unused": "beside the weights", "used": "instead of the weights"}.get(self.ema),
            **{name: f"{p.network}, {p.dtype}, {p.parameters / 1e6:.1f} million in {p.tensors} tensors" for name, p in self.parts.items()},
            "ignored": f"{self.ignored_keys} keys, on purpose" if self.ignored_keys else None,
            **{f"sha256 {name}": digest for name, digest in self.sha256.items()},
            "identity": self.identity if len(self.sha256) > 1 else None,
            "question": self.question,
        }
        lines = [f"{name:<16} {value}" for name, value in heads.items() if value]
        for what, keys in (("missing", self.missing_keys), ("unmatched", self.unmatched_keys), ("wrong shape", self.wrong_shapes)):
            lines += [f"{what:<16} {key}" for key in keys]
        return lines


def inspect(path: str | Path, *, hashed: bool = False, variant: str | None = None) -> InspectReport:
    """Look at a checkpoint's header: a single file, the index of its shards, or a folder.

    Args:
        hashed: also give the SHA-256 of each file, for which all of it is read.
        variant: of a folder's files, such as "fp16".

    Raises:
        DaguerreError: it is no checkpoint, or its header is damaged.
    """
    path = Path(path)
    if (path / INDEX).is_file() and read_json(path / INDEX).get("_class_name") == LATENT_PRIOR:
        return _latent_prior(path, hashed)
    file = open_tensors(path, variant=variant)
    question = None
    try:
        about = detect(file)
        faults = about.key_errors()
    except DaguerreError as error:
        about, question = DetectedModel(file, split_components(file.shapes)), str(error)
        faults = {"missing": [], "unmatched": about.contents.unmatched, "of another shape": []}
    if about.family and about.family.name == "sd2" and about.prediction is None:
        question = "Does it predict v (trained at 768 pixels) or epsilon (the 512-pixel base)? Give prediction= when opening it."
    kind = next((name for name, sign in ATTACHMENTS.items() if any(sign.match(key) for key in file.shapes)), None)
    if kind is not None and about.unet is None:
        faults["unmatched"] = []  # its names are read where it is attached
    files = weight_files(file.path, variant)
    return InspectReport(
        path=str(path),
        container=file.container,
        family=about.family.name
        if about.family
        else kind or "+".join(part.kind.network for part in about.contents.parts.values()) or "unknown",
        task=task_of(about.family, about.unet) if about.family and about.unet else None,
        prediction_type=about.prediction,
        prediction_from=about.prediction_from or None,
        dtype=_dtype(file.shapes.values()),
        parameters=_parameters(file.shapes.values()),
        bytes=sum(each.stat().st_size for each in files),
        parts={name: PartReport.of(part.kind.network, part.original) for name, part in about.contents.parts.items()},
        ema=about.contents.ema,
        metadata={key: value for key, value in file.metadata.items() if key != CONFIGS},
        unmatched_keys=faults["unmatched"],
        missing_keys=faults["missing"],
        wrong_shapes=faults["of another shape"],
        ignored_keys=len(about.contents.ignored),
        question=question,
        **_hashes(files, file.path) if hashed else {},
    )


def _latent_prior(folder: Path, hashed: bool) -> InspectReport:
    """Of a first stage with a prior over its codes (see `latent_priors`), whose parts are networks of ours."""
    from daguerre.weights.diffusers.load import modernize_key
    from daguerre.weights.diffusers.prior import FIRST_STAGE_FOLDER, MAP_FOLDER, PRIOR_FOLDER, build_untrained
    from daguerre.weights.diffusers.vae_config import vq_config

    faults: dict[str, list[str]] = {"missing": [], "unmatched": [], "of another shape": []}
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
        faults["missing"] += [f"{part}/{name}" for name in wanted.keys() - found.keys()]
        faults["unmatched"] += [f"{part}/{name}" for name in found.keys() - wanted.keys()]
        faults["of another shape"] += [f"{part}/{n}" for n in found.keys() & wanted.keys() if found[n].shape != wanted[n].shape]
        parts[part] = PartReport.of(str(given["_class_name"]), found)
        shapes |= {f"{part}/{name}": tensor for name, tensor in found.items()}
    files = tuple(weights_in(folder / part) for part in parts)
    told = read_json(folder / INDEX).get("prefix", {}).get("kind", "none")
    return InspectReport(
        path=str(folder),
        container="folder",
        family="latent-prior",
        task="told nothing" if told == "none" else f"told by {told}",
        prediction_type=None,
        prediction_from=None,
        dtype=_dtype(shapes.values()),
        parameters=_parameters(shapes.values()),
        bytes=sum(each.stat().st_size for each in files),
        parts=parts,
        ema="none",
        metadata={},
        unmatched_keys=sorted(faults["unmatched"]),
        missing_keys=sorted(faults["missing"]),
        wrong_shapes=sorted(faults["of another shape"]),
        ignored_keys=0,
        **_hashes(files, folder) if hashed else {},
    )


def _hashes(files: Sequence[Path], path: Path) -> dict[str, Any]:
    """What a report says of the bytes of a model's files, named as they lie in its folder."""
    home = path if path.is_dir() else path.parent
    named = {each.name if len(files) == 1 else str(each.relative_to(home)): file_hash(each) for each in files}
    return {"sha256": named, "identity": files_hash(files)}


def _dtype(tensors: Iterable[Tensor]) -> str:
    """The type of most numbers, without torch's prefix."""
    counts: Counter[Any] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += tensor.numel()
    return str(counts.most_common(1)[0][0]).removeprefix("torch.") if counts else "none"


def _parameters(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
