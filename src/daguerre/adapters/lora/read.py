"""Read a LoRA of any program and kind: kohya, LyCORIS, diffusers, PEFT, OneTrainer, SimpleTuner, ComfyUI.

A name is MODULE.SUFFIX. The suffixes of a module decide its kind (`weight_delta`); the module's name is found by `module_names`.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from daguerre.adapters.embedding import Embedding, embedding_of
from daguerre.adapters.lora.lora import Lora, LoraLayer
from daguerre.adapters.lora.module_names import layer_name
from daguerre.adapters.lora.peft_config import PeftConfig, peft_configs
from daguerre.adapters.lora.weight_delta import (
    ChannelScale,
    Difference,
    DoRA,
    Generalized,
    Hadamard,
    Kronecker,
    LowRank,
    Orthogonal,
    WeightDelta,
)
from daguerre.adapters.record import AdapterRecord, adapter_stem
from daguerre.errors import DaguerreError, join_names
from daguerre.weights.hashing import file_hash
from daguerre.weights.tensors.reader import TensorFile, open_tensors

FOLDER_FILES_OF_LORA = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
PEFT_CONFIG_FILE = "adapter_config.json"
# Suffixes of names and what they mean; a word between dots is PEFT's name of the adapter.
NAME_SUFFIXES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"(?P<module>.+?){pattern}"), part)
    for pattern, part in (
        (r"\.lora_up\.weight", "up"),
        (r"\.lora_down\.weight", "down"),
        (r"\.lora_mid\.weight", "mid"),
        (r"\.lora_B(\.\w+)?\.weight", "up"),
        (r"\.lora_A(\.\w+)?\.weight", "down"),
        (r"[._]lora\.up\.weight", "up"),
        (r"[._]lora\.down\.weight", "down"),
        (r"\.lora_linear_layer\.up\.weight", "up"),
        (r"\.lora_linear_layer\.down\.weight", "down"),
        (r"(\.lora|[._]lora|\.lora_linear_layer)?\.alpha", "alpha"),
        (r"\.dora_scale", "dora_scale"),
        (r"\.lora_magnitude_vector(\.\w+)?(\.weight)?", "magnitude"),
        (r"\.hada_(?P<part>w[12]_[ab]|t[12])(\.\w+)?", "hada"),
        (r"\.lokr_(?P<part>w[12](_[ab])?|t2)(\.\w+)?", "lokr"),
        (r"\.(?P<part>[ab][12])\.weight", "glora"),
        (r"\.(diff|w_norm)", "diff"),
        (r"\.(diff_b|b_norm)", "diff_b"),
        (r"\.ia3_l(\.\w+)?", "ia3_l"),
        (r"\.on_input", "on_input"),
        (r"\.oft_blocks", "oft_blocks"),
        (r"\.rescale", "rescale"),
        (r"\.weight", "ia3"),
    )
)
REFUSED = {
    r"unet:\d+:(up|down)|text_encoder:\d+:(up|down)": "a LoRA of the early cloneofsimo format, whose layers have no names",
    r".+\.oft_(diag|R)(\.|$)": "an OFT of a rare form (BOFT, or OFT of PEFT)",
    r".*(double_blocks|single_transformer_blocks|joint_blocks|transformer\.transformer_blocks)[._]\d": "a LoRA for Flux or SD 3",
}
BUNDLED = re.compile(r"bundle_emb\.(?P<word>.+)\.(?P<key>clip_l|clip_g|string_to_param\.\*)(?P<output>_out)?")


def load_lora(path: str | Path) -> Lora:
    """Read a LoRA from a file, or from a folder of PEFT or diffusers.

    Raises:
        DaguerreError: it is no LoRA, is damaged or of a kind that is not supported; says why.
    """
    path, folder = Path(path), Path(path) if Path(path).is_dir() else None
    if folder is not None:
        found = [folder / name for name in FOLDER_FILES_OF_LORA if (folder / name).is_file()]
        if not found:
            raise DaguerreError(f"'{folder}' has no LoRA; a folder has {FOLDER_FILES_OF_LORA[0]} or {FOLDER_FILES_OF_LORA[2]}.")
        path = found[0]
    file = open_tensors(path)
    record = AdapterRecord("lora", adapter_stem(folder or path), str(folder or path), file_hash(path), short_hash(path, file))
    return read_lora(file, record, peft_configs(file.metadata, folder and folder / PEFT_CONFIG_FILE))


def read_lora(file: TensorFile, record: AdapterRecord, configs: Mapping[str, PeftConfig] | None = None) -> Lora:
    """The LoRA in an opened file. configs: PEFT's settings by network ("" for all)."""
    _refuse(file)
    bundled = [name for name in file.shapes if BUNDLED.fullmatch(name)]
    modules, unknown = _split_names(name for name in file.shapes if name not in bundled)
    if not modules:
        raise DaguerreError(f"'{file.path}' is no LoRA: none of its {len(file.shapes)} tensors has a name of one ({_shown(file.shapes)}).")
    alphas = {name for parts in modules.values() for part, name in parts.items() if part == "alpha"}
    tensors = file.read(name for parts in modules.values() for name in parts.values() if name not in alphas)
    tensors |= {name: file.tensor(name) for name in alphas}
    layers = {}
    for module, parts in modules.items():
        named = {part: tensors[name] for part, name in parts.items()}
        try:
            layers[layer_name(module)] = _layer(module, named, _config_of(configs or {}, module), file.path)
        except KeyError as error:
            raise DaguerreError(f"'{file.path}' is incomplete: the layer {module} has no {error.args[0]}. Download it again.") from error
    embeddings, skipped = _bundled_embeddings(file, bundled)
    notes = (*_alpha_notes(modules, file, configs), *skipped)
    return Lora(layers, record, embeddings, file.metadata, tuple(modules), tuple(unknown), notes)


def short_hash(path: Path, file: TensorFile) -> str | None:
    """The first 12 digits of the SHA-256 of a file's tensors, by which web UIs name a LoRA; None for a pickled file."""
    stored = file.metadata.get("sshs_model_hash", "")
    if re.fullmatch(r"[0-9a-f]{64}", stored):
        return stored[:12]
    if file.container != "safetensors":
        return None
    with path.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        return hashlib.file_digest(stream, "sha256").hexdigest()[:12]


def _refuse(file: TensorFile) -> None:
    for pattern, kind in REFUSED.items():
        if any(map(re.compile(pattern).match, file.shapes)):
            raise DaguerreError(f"'{file.path}' is {kind}, which is not supported; use a LoRA for Stable Diffusion 1, 2 or XL.")
    rare = [name for name, shape in file.shapes.items() if name.endswith(".oft_blocks") and shape.ndim != 3]
    if rare:
        raise DaguerreError(f"'{file.path}' is a BOFT ({rare[0]} has {file.shapes[rare[0]].ndim} axes), which is not supported.")


def _split_names(names: Iterable[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The modules of a file, each with its names by part; and the names that no suffix ends."""
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    unknown = []
    for name in names:
        for pattern, part in NAME_SUFFIXES:
            if found := pattern.fullmatch(name):
                part = f"{part}.{found['part']}" if "part" in found.groupdict() else part
                modules[found["module"]][part] = name
                break
        else:
            unknown.append(name)
    plain = [module for module, parts in modules.items() if parts.keys() == {"ia3"}]  # an ordinary weight
    return modules, unknown + [modules.pop(module)["ia3"] for module in plain]


def _layer(module: str, parts: Mapping[str, Tensor], config: "tuple[PeftConfig, str] | None", where: object) -> LoraLayer:
    """The change of a layer. Raises KeyError if a part is missing."""
    weight, bias = _delta(module, parts, config, where), None
    if "ia3_l" in parts and parts["ia3_l"].shape[0] != 1:
        bias = ChannelScale(parts["ia3_l"].flatten() - 1)
    if "diff_b" in parts:
        bias = Difference(parts["diff_b"])
    if weight is None:
        return LoraLayer(bias=bias)
    if "dora_scale" in parts:
        weight = DoRA(weight, parts["dora_scale"])
    if "magnitude" in parts:
        weight = DoRA(weight, parts["magnitude"].reshape(-1, 1))
    return LoraLayer(weight, bias)


def _delta(module: str, parts: Mapping[str, Tensor], config: "tuple[PeftConfig, str] | None", where: object) -> WeightDelta | None:
    kinds = {part.partition(".")[0] for part in parts}

    def alpha(rank: int) -> float | None:
        return _alpha(module, parts, config, rank, where)

    if kinds & {"up", "down"}:
        down = parts["down"]
        return LowRank(down, parts["up"], alpha(len(down)), parts.get("mid"))
    if "hada" in kinds:
        factors = [parts[f"hada.{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b")]
        return Hadamard(*factors, alpha=alpha(len(factors[1])), t1=parts.get("hada.t1"), t2=parts.get("hada.t2"))
    if "lokr" in kinds:
        return _kronecker({name.partition(".")[2]: tensor for name, tensor in parts.items() if name.startswith("lokr")}, config, alpha)
    if "glora" in kinds:
        return _generalized([parts[f"glora.{name}"] for name in ("a1", "a2", "b1", "b2")], alpha)
    if "oft_blocks" in kinds:
        return Orthogonal(parts["oft_blocks"], alpha(1), parts.get("rescale"))
    if "on_input" in kinds:
        return ChannelScale(parts["ia3"].flatten(), bool(parts["on_input"].flatten()[0]))
    if "ia3_l" in kinds:
        return ChannelScale(parts["ia3_l"].flatten() - 1, on_input=parts["ia3_l"].shape[0] == 1)
    return Difference(parts["diff"]) if "diff" in kinds else None if "diff_b" in kinds else _missing("up and down")


def _missing(part: str) -> WeightDelta:
    raise KeyError(part)


def _kronecker(factors: Mapping[str, Tensor], config: "tuple[PeftConfig, str] | None", alpha: Callable[[int], float | None]) -> Kronecker:
    for side in ("w1", "w2"):
        if side not in factors and not {f"{side}_a", f"{side}_b"} <= factors.keys():
            raise KeyError(f"lokr_{side}")
    get = factors.get
    unscaled = Kronecker(get("w1"), get("w1_a"), get("w1_b"), get("w2"), get("w2_a"), get("w2_b"), get("t2"))
    if config is not None:
        rank = config[0].rank_of(config[1])
        return replace(unscaled, alpha=alpha(rank or 1), always_scaled_by=rank)
    # With both factors whole there is no rank, and alpha is not read: some files store an infinite one.
    return unscaled if unscaled.rank is None else replace(unscaled, alpha=alpha(unscaled.rank))


def _generalized(factors: list[Tensor], alpha: Callable[[int], float | None]) -> Generalized:
    a1, a2, b1, b2 = factors
    if a1.shape[0] < a1.shape[1]:  # older files: W @ a2 @ a1 + b2 @ b1
        a1, a2, b1, b2 = a2, a1, b2, b1
    return Generalized(a1, a2, b1, b2, alpha(len(a2)))


def _alpha(module: str, parts: Mapping[str, Tensor], config: "tuple[PeftConfig, str] | None", rank: int, where: object) -> float | None:
    if "alpha" in parts:
        value = float(parts["alpha"].flatten()[0]) if parts["alpha"].numel() else float("nan")
        if not isfinite(value):
            raise DaguerreError(f"'{where}' has the alpha {value} in {module}; it is damaged, or its training diverged.")
        return value
    return None if config is None else config[0].alpha_of(config[1], rank)


def _config_of(configs: Mapping[str, PeftConfig], module: str) -> "tuple[PeftConfig, str] | None":
    """PEFT's settings for a module, and the module's name in them."""
    component, _, rest = module.partition(".")
    if component in configs:
        return configs[component], rest
    return (configs[""], module.removeprefix("base_model.model.")) if "" in configs else None


def _alpha_notes(modules: Mapping[str, Mapping[str, str]], file: TensorFile, configs: Mapping[str, Any] | None) -> Iterable[str]:
    """Sentences about missing or contradicting alphas."""
    low_rank = [module for module, parts in modules.items() if {"down", "hada.w1_b", "lokr.w2_b", "lokr.w1_b"} & parts.keys()]
    without = [module for module in low_rank if "alpha" not in modules[module]]
    kohya = [module for module in without if module.startswith(("lora_", "lycoris_"))]
    if without and not configs and (kohya or len(without) < len(low_rank)):
        yield f"{len(without)} of {len(low_rank)} layers have no alpha; it is taken to be the rank there (scale 1)."
    whole = [module for module, parts in modules.items() if {"lokr.w1", "lokr.w2"} <= parts.keys() and "alpha" in parts]
    dim = file.metadata.get("ss_network_dim", "")
    if whole and dim.isdecimal() and float(file.tensor(modules[whole[0]]["alpha"])) != float(dim):
        yield (
            f"its LoKr layers are not factorized, so its alpha is not used (scale 1), but the header says alpha and dim {dim} differ; "
            "if the result is too strong, lower the scale."
        )


def _bundled_embeddings(file: TensorFile, names: list[str]) -> tuple[tuple[Embedding, ...], tuple[str, ...]]:
    """The embeddings in a LoRA, and sentences about those that are skipped."""
    words: dict[str, dict[str, Tensor]] = defaultdict(dict)
    skipped = set()
    for name, tensor in file.read(names).items():
        found = BUNDLED.fullmatch(name)
        assert found is not None
        if found["output"]:
            skipped.add(found["word"])
        else:
            words[found["word"]][found["key"]] = tensor
    notes = (f"the output embeddings of {join_names(skipped)} are skipped; they are not supported.",) if skipped else ()
    return tuple(embedding_of(word, tensors, file.path) for word, tensors in words.items()), notes


def _shown(names: Iterable[str]) -> str:
    return join_names(name[:80] for name in names)
