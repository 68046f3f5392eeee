"""Describe an adapter's file for `daguerre inspect`: kind, naming, family, ranks, trigger words, layers that no model of the family has."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from daguerre.adapters.attach import matched_layers
from daguerre.adapters.controlnet import CONTROL_LORA, DIFFERENCE, UNSUPPORTED_CONTROLS, family_of_shapes, has_name
from daguerre.adapters.embedding import FOLDER_FILES, IMAGE_SUFFIXES, NESTED, PAIR_KEYS, WIDTHS, Embedding, load_embedding
from daguerre.adapters.ip_adapter import ip_adapter_kind
from daguerre.adapters.lora.lora import Lora
from daguerre.adapters.lora.module_names import NetworkRole
from daguerre.adapters.lora.read import FOLDER_FILES_OF_LORA, load_lora
from daguerre.adapters.lora.weight_delta import DoRA, LowRank, WeightDelta
from daguerre.adapters.t2i_adapter import canonical_tensors, t2i_config
from daguerre.errors import DaguerreError, join_names
from daguerre.models.clip import CLIP_L, OPENCLIP_BIGG, CLIPText, CLIPTextConfig
from daguerre.models.unet import SD1, SD2, SDXL, SDXL_REFINER, UNet
from daguerre.nn.meta import shapes_only
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.hashing import file_hash
from daguerre.weights.original.detect import attachment_kind
from daguerre.weights.tensors.reader import TensorFile, open_tensors, weights_in
from daguerre.weights.tensors.safetensors import read_json

SD2_TEXT = CLIPTextConfig(width=1024, layers=24, heads=16, mlp_width=4096, activation="gelu")
ARCHITECTURES = {
    "sd1": (SD1, {"te1": CLIP_L}),
    "sd2": (SD2, {"te1": SD2_TEXT}),
    "sdxl": (SDXL, {"te1": CLIP_L, "te2": OPENCLIP_BIGG}),
    "sdxl-refiner": (SDXL_REFINER, {"te2": OPENCLIP_BIGG}),
}
KIND_NAMES = {
    "LowRank": "LoRA", "Hadamard": "LoHa", "Kronecker": "LoKr", "Difference": "difference", "ChannelScale": "IA3", "Generalized": "GLoRA",
    "Orthogonal": "OFT", "DoRA": "DoRA",
}  # fmt: skip
NAMINGS = (  # by the start of a name, the first match counts
    ("base_model.model.", "PEFT"),
    (("lora_", "oft_"), "kohya"),
    ("lycoris_", "SimpleTuner"),
    (("diffusion_model.", "text_encoders."), "ComfyUI"),
    ("", "diffusers"),
)
MAX_TRIGGER_WORDS = 12
IMAGE_KINDS = ("controlnet", "t2i-adapter", "ip-adapter")
FOLDER_CLASSES = ("ControlNetModel", "ControlNetUnionModel", "T2IAdapter")  # in the config.json of a folder


@dataclass(frozen=True)
class AdapterReport:
    """The result of `describe_adapter`.

    family: of the models it is for; None if unknown. layers: how many of each kind. ranks, alphas: the different ones, ascending.
    trigger_words: what its trainer says to write into a prompt. unmatched_layers: not in a model of the family. unknown_keys: not read.
    notes: what may not be as intended.
    """

    path: str
    kind: str
    naming: str
    family: str | None
    layers: dict[str, int] = field(default_factory=dict)
    networks: dict[str, int] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    words: dict[str, int] = field(default_factory=dict)
    trigger_words: list[str] = field(default_factory=list)
    unmatched_layers: list[str] = field(default_factory=list)
    unknown_keys: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """As a JSON object."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def lines(self) -> list[str]:
        """As readable text."""
        heads = {
            "kind": f"{self.kind}, {self.naming} names" if self.naming else self.kind,
            "family": self.family or "unknown",
            "layers": ", ".join(f"{count} {kind}" for kind, count in self.layers.items()),
            "networks": ", ".join(f"{count} in {role}" for role, count in self.networks.items()),
            "rank": _span(self.ranks),
            "alpha": _span(self.alphas),
            "words": ", ".join(f"{word!r} ({count} vector{'s' if count != 1 else ''})" for word, count in self.words.items()),
            "trigger words": ", ".join(self.trigger_words),
            "sha256": self.sha256 or "",
        }
        lines = [f"{name:<16} {value}" for name, value in heads.items() if value]
        for what, entries in (("note", self.notes), ("unmatched", self.unmatched_layers), ("not read", self.unknown_keys)):
            lines += [f"{what:<16} {entry}" for entry in entries]
        return lines


def describe_adapter(path: str | Path) -> AdapterReport | None:
    """Describe the adapter in a file, an image or a folder; None if it is something else.

    Raises:
        DaguerreError: it is an adapter, but damaged or not supported.
    """
    path = Path(path)
    if path.is_dir():
        if any((path / name).is_file() for name in FOLDER_FILES_OF_LORA):
            return _describe_lora(load_lora(path))
        if any((path / name).is_file() for name in FOLDER_FILES):
            return _describe_embedding(load_embedding(path))
        config = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
        return _describe_image_adapter(open_tensors(weights_in(path)), path) if config.get("_class_name") in FOLDER_CLASSES else None
    if path.suffix.lower() in IMAGE_SUFFIXES:
        try:
            return _describe_embedding(load_embedding(path))
        except DaguerreError:  # an ordinary image
            return None
    if not path.is_file():
        return None
    file = open_tensors(path)
    kind = attachment_kind(file.shapes)
    if kind == "lora":
        return _describe_lora(load_lora(path))
    if kind == "textual-inversion" or _is_embedding(file):
        return _describe_embedding(load_embedding(path))
    return _describe_image_adapter(file, path) if kind in IMAGE_KINDS else None


def _describe_image_adapter(file: TensorFile, path: Path) -> AdapterReport:
    """Describe a ControlNet, a T2I-Adapter or an IP-Adapter: its kind, naming and family. Raises DaguerreError for other files."""
    shapes = file.shapes
    kind = attachment_kind(shapes)
    family = family_of_shapes(shapes)
    naming, notes = (
        "",
        [f"This is {what}, which is not supported." for mark, what in UNSUPPORTED_CONTROLS.items() if has_name(shapes, mark)],
    )
    if kind == "controlnet":
        naming = "diffusers" if "controlnet_cond_embedding.conv_in.weight" in shapes else "original"
        forms = {CONTROL_LORA: "a control-LoRA: weights that are added to the model's own", DIFFERENCE: "a difference from SD 1.5"}
        notes += [f"This is {form}." for mark, form in forms.items() if mark in shapes]
    elif kind == "t2i-adapter":
        naming = "diffusers" if any(".resnets." in name for name in shapes) else "original"
        config = t2i_config(canonical_tensors(shapes, path), path)
        family = "sdxl" if config.factor == 16 else "sd1"
        notes = [f"This is a {'light' if config.light else 'full'} adapter for maps of {config.map_channels} channels."]
    elif kind == "ip-adapter":
        form = ip_adapter_kind(shapes)
        notes = [f"This is a{'n FaceID adapter, which is not supported' if form == 'faceid' else f' {form} adapter'}."]
    else:
        raise DaguerreError(f"'{path}' is no ControlNet, T2I-Adapter or IP-Adapter; it has names such as {join_names(list(shapes)[:3])}.")
    return AdapterReport(str(path), kind, naming, family, notes=notes, sha256=file_hash(file.path), metadata=dict(file.metadata))


def _is_embedding(file: TensorFile) -> bool:
    """Whether a file has only the vectors of one word, as diffusers stores them."""
    names = [name for name in file.shapes if not NESTED.match(name)]
    if len(names) != 1:
        return set(names) == set(PAIR_KEYS)
    shape = file.shapes[names[0]].shape
    return len(shape) in (1, 2) and shape[-1] in WIDTHS


def _describe_lora(lora: Lora) -> AdapterReport:
    deltas = [layer.weight for layer in lora.layers.values() if layer.weight is not None]
    family = lora.family
    unmatched: list[str] = []
    if family in ARCHITECTURES:
        matched = matched_layers(lora, networks_of_family(lora))
        unmatched = [f"{name.role}: {name.path}" for name in lora.layers if name not in matched]
    return AdapterReport(
        path=str(lora.record.path),
        kind="lora",
        naming=_naming(lora),
        family=family,
        layers=dict(Counter(_kind_name(delta) for delta in deltas)),
        networks=dict(Counter(name.role for name in lora.layers)),
        ranks=lora.ranks,
        alphas=sorted({alpha for delta in deltas if (alpha := _alpha_of(delta)) is not None}),
        words={embedding.word: embedding.count for embedding in lora.embeddings},
        trigger_words=trigger_words(lora.metadata),
        unmatched_layers=unmatched,
        unknown_keys=list(lora.unknown),
        notes=list(lora.notes),
        sha256=lora.record.sha256,
        metadata=dict(lora.metadata),
    )


def _describe_embedding(embedding: Embedding) -> AdapterReport:
    families = {(768,): "sd1", (1024,): "sd2", (768, 1280): "sdxl", (1280,): "sdxl-refiner"}
    return AdapterReport(
        path=str(embedding.record.path),
        kind="textual-inversion",
        naming="",
        family=families.get(tuple(sorted(embedding.vectors))),
        words={embedding.word: embedding.count},
        trigger_words=[embedding.word],
        sha256=embedding.record.sha256,
    )


def trigger_words(metadata: Mapping[str, str]) -> list[str]:
    """The words that a trainer recorded: its trigger phrase, else the most frequent tags of its captions."""
    if phrase := metadata.get("modelspec.trigger_phrase"):
        return [word.strip() for word in phrase.split(",") if word.strip()][:MAX_TRIGGER_WORDS]
    counts: Counter[str] = Counter()
    try:
        folders: Any = json.loads(metadata.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, count in tags.items() if isinstance(tags, dict) else ():
            counts[str(tag).strip()] += count if isinstance(count, int) else 0
    return [tag for tag, _ in counts.most_common(MAX_TRIGGER_WORDS) if tag]


def networks_of_family(lora: Lora) -> dict[NetworkRole, nn.Module]:
    """The networks of the family that a LoRA is for, on the meta device. Raises DaguerreError if the family is unknown."""
    if lora.family not in ARCHITECTURES:
        raise DaguerreError(f"The family of the LoRA {lora.record.name!r} is unknown; the known ones are {', '.join(ARCHITECTURES)}.")
    unet, encoders = ARCHITECTURES[lora.family]
    with shapes_only():
        return {"unet": UNet(unet), **{role: CLIPText(config) for role, config in encoders.items()}}  # type: ignore[dict-item]


def _naming(lora: Lora) -> str:
    first = next((key for key in lora.keys if key), "")
    return next(naming for start, naming in NAMINGS if first.startswith(start))


def _kind_name(delta: WeightDelta) -> str:
    if isinstance(delta, DoRA):
        return f"DoRA of {_kind_name(delta.inner)}"
    name = KIND_NAMES[type(delta).__name__]
    return f"{name} with mid" if isinstance(delta, LowRank) and delta.mid is not None else name


def _alpha_of(delta: WeightDelta) -> float | None:
    alpha = getattr(delta.inner if isinstance(delta, DoRA) else delta, "alpha", None)
    return float(alpha) if alpha is not None else None


def _span(values: list[Any]) -> str:
    """The lowest and the highest of some numbers."""
    if not values:
        return ""
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"
