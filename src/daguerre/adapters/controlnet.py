"""ControlNets as adapters: read from either layout, with a scale and the share of the steps in which they apply.

    model = with_adapters(model, [load_controlnet("canny.safetensors", model).scaled(0.8, end=0.7)])
    generate(model, prompt="a house", control_images=[edges])

The names of the original code (`control_model.input_blocks…`) and of diffusers; whole networks, files of differences from SD 1.5, and
control-LoRAs, whose weights are W + up·down of the model's own.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from daguerre.adapters.image_adapter import ImageAdapter
from daguerre.adapters.lora.lora import CONTEXT_FAMILIES
from daguerre.adapters.record import AdapterRecord, adapter_stem
from daguerre.atomic_io import atomic_path, check_overwrite
from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError, join_names
from daguerre.models.controlnet import ControlNetConfig, ControlNetModel
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet, UNetConfig
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.diffusers.load import write_part
from daguerre.weights.diffusers.unet_config import unet_json
from daguerre.weights.hashing import file_hash
from daguerre.weights.original.infer_config import unet_from_shapes
from daguerre.weights.original.key_map import KeyTable, Rule, UNetLayout, rule, unet_rules
from daguerre.weights.tensors.reader import TensorFile, open_tensors, weights_in
from daguerre.weights.tensors.safetensors import config_errors, read_json, to_compute_layout

PREFIX = "control_model."  # of files of the original code; the first ones hold a whole model next to it
DIFFERENCE = "difference"  # an empty tensor in files that store the difference from SD 1.5
CONTROL_LORA = "lora_controlnet"  # an empty tensor in control-LoRAs
WIDTH_NAMES = re.compile(r"\.attn2\.to_k\.(weight|down)$|\.to_k_ip\.weight$")  # their inputs have the width of the text states
# Fields of a UNet's config that a ControlNet of diffusers does not have.
UNET_ONLY_FIELDS = ("center_input_sample", "dropout", "out_channels", "sample_size", "up_block_types")
GUESS_EXPONENTS = (-1.0, 0.0)  # of 10: the scales of guess mode, from the upper layers to the middle
# Kinds that are recognised and not supported, by a tensor name that only they have.
UNSUPPORTED_CONTROLS = {
    r"task_embedding$|control_add_embedding\.|transformer_layes\.|spatial_ch_projs\.": "a ControlNet for several kinds of maps (union)",
    r"lllite_": "a ControlNet-LLLite",
    r"(adapter\.)?body\.\d+\.": "a T2I-Adapter, which --t2i-adapter takes",
    r"(ip_adapter|image_proj)\.": "an IP-Adapter, which --ip-adapter takes",
    r".*controlnet_x_embedder\.|double_blocks\.|transformer_blocks\.\d+\.attn\.add_": "a ControlNet for Flux or SD 3",
}


@dataclass(frozen=True, eq=False)
class ControlNet(ImageAdapter):
    """A ControlNet for one model. pooled: use the mean of each residual over space ("shuffle")."""

    network: ControlNetModel
    pooled: bool = False

    def residuals(self, x: Tensor, t: Tensor, cond: Conditioning, control_map: Tensor, prompted: Tensor) -> list[Tensor]:
        """The residuals for `UNet.forward`, scaled.

        Args:
            x, t, cond: as for the UNet; extra input channels are not used.
            control_map: (1, 3, 8H, 8W) in [0, 1].
            prompted: (B,) 1 for rows of prompts and 0 for those of negative prompts, which guess mode leaves alone.
        """
        residuals = self.network(x, t, replace(cond, concat=None), control_map)
        if self.pooled:
            residuals = [residual.mean((2, 3), keepdim=True) for residual in residuals]
        scales = [self.record.scale] * len(residuals)
        if self.record.guess_mode:
            scales = (torch.logspace(*GUESS_EXPONENTS, len(residuals)) * self.record.scale).tolist()
        if self.record.guess_mode or self.pooled:
            rows = prompted.to(x).reshape(-1, 1, 1, 1)
            residuals = [residual * rows for residual in residuals]
        return [residual * scale for residual, scale in zip(residuals, scales, strict=True)]


def load_controlnet(path: str | Path, model: LatentDiffusion) -> ControlNet:
    """Read a ControlNet from a file, or from a folder of diffusers, in the precision and on the device of the model it is for.

    Raises:
        DaguerreError: it is no ControlNet, of a kind that is not supported, or for another family of models.
    """
    path = Path(path)
    config = read_json(path / CONFIG_FILE) if path.is_dir() else {}
    source = weights_in(path) if path.is_dir() else path
    file = open_tensors(source)
    for pattern, kind in UNSUPPORTED_CONTROLS.items():
        if has_name(file.shapes, pattern):
            raise DaguerreError(f"'{path}' is {kind}; give a ControlNet for one kind of map instead.")
    tensors = _canonical_tensors(file)
    if DIFFERENCE in file.shapes or CONTROL_LORA in file.shapes:
        tensors = _with_unet(tensors, model.unet, path)
    shape = _check_family(tensors, model, path)
    tensors = {name: to_compute_layout(tensor, model.device, model.dtype) for name, tensor in tensors.items()}
    with config_errors(path), shapes_only():
        network = ControlNetModel(shape)
    fill(network, tensors, path)
    record = AdapterRecord("controlnet", adapter_stem(path), str(path), file_hash(source))
    pooled = bool(config.get("global_pool_conditions", "shuffle" in path.stem.lower()))
    return ControlNet(record, network.eval(), pooled)


def has_name(names: Iterable[str], pattern: str) -> bool:
    """Whether a file has a name that starts with a pattern."""
    return any(map(re.compile(pattern).match, names))


def controlnet_family(path: Path) -> str | None:
    """The family of models that a ControlNet is for, from the shapes in its file or folder; None if unknown.

    Raises:
        DaguerreError: the file cannot be read.
    """
    return family_of_shapes(open_tensors(weights_in(path) if path.is_dir() else path).shapes)


def family_of_shapes(shapes: Mapping[str, Tensor]) -> str | None:
    """The family of models from the cross-attentions of a ControlNet or an IP-Adapter; None if unknown."""
    return next((CONTEXT_FAMILIES.get(shape.shape[1]) for name, shape in shapes.items() if WIDTH_NAMES.search(name)), None)


def save_controlnet(network: ControlNetModel, folder: Path) -> Path:
    """Write a ControlNet as a folder that `load_controlnet` and diffusers read, replacing an older one.

    Raises:
        DaguerreError: the folder holds something else, or cannot be written; its content is unchanged.
    """
    check_overwrite(folder, CONFIG_FILE, "ControlNet")
    fields = {name: value for name, value in unet_json(network.config, 1).items() if name not in UNET_ONLY_FIELDS}
    fields |= {
        "_class_name": "ControlNetModel",
        "conditioning_channels": network.control_config.map_in_channels,
        "conditioning_embedding_out_channels": list(network.control_config.map_channels),
    }
    with atomic_path(folder) as temporary:
        write_part(temporary, fields, network.state_dict(), None)
    return folder


def _canonical_tensors(file: TensorFile) -> dict[str, Tensor]:
    """The tensors of a ControlNet under the names of diffusers. Raises DaguerreError if the file has none."""
    names = [name for name in file.shapes if name not in (DIFFERENCE, CONTROL_LORA)]
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in file.read(n for n in names if n.startswith(prefix)).items()}
    if "controlnet_cond_embedding.conv_in.weight" in tensors:
        return tensors
    if "input_hint_block.0.weight" not in tensors:
        raise DaguerreError(f"'{file.path}' is no ControlNet: it has names such as {join_names(names[:3])}.")
    renamed, unmatched = KeyTable(controlnet_rules(tensors)).to_canonical(tensors)
    if unmatched:
        raise DaguerreError(f"'{file.path}' has {len(unmatched)} names that no ControlNet has ({join_names(unmatched)}).")
    return renamed


def controlnet_rules(tensors: Mapping[str, Tensor]) -> Iterator[Rule]:
    """The names of the original code (cldm.py of ControlNet), for a network with these tensors."""
    entries = {int(found[1]) for name in tensors if (found := re.match(r"input_blocks\.(\d+)\.", name))}
    downsamplers = sorted(n for n in entries if {f"input_blocks.{n}.0.op.weight", f"input_blocks.{n}.0.op.up"} & tensors.keys())
    blocks = (downsamplers[0] if downsamplers else max(entries) + 1) - 1
    levels = len(downsamplers) + 1
    heads = [f"input_blocks.{1 + level * (blocks + 1)}.1.proj_in." for level in range(levels)]
    attention = tuple(bool({f"{head}weight", f"{head}up"} & tensors.keys()) for head in heads)
    yield from unet_rules(UNetLayout(blocks, attention, False, False, (1,) * levels))
    yield rule("input_hint_block.0.", "controlnet_cond_embedding.conv_in.")
    yield from (rule(f"input_hint_block.{2 * (i + 1)}.", f"controlnet_cond_embedding.blocks.{i}.") for i in range(6))
    yield rule("input_hint_block.14.", "controlnet_cond_embedding.conv_out.")
    yield from (rule(f"zero_convs.{n}.0.", f"controlnet_down_blocks.{n}.") for n in sorted(entries))
    yield rule("middle_block_out.0.", "controlnet_mid_block.")


def _with_unet(tensors: Mapping[str, Tensor], unet: UNet, path: Path) -> dict[str, Tensor]:
    """A file of differences, or a control-LoRA, added to the UNet of the model; what the file does not have is the UNet's own."""
    own = {name: tensor for name, tensor in unet.state_dict().items() if not name.startswith(("up_blocks.", "conv_norm_out.", "conv_out."))}
    if any(tensor.is_meta for tensor in own.values()):
        raise DaguerreError(f"'{path}' stores differences and needs the whole UNet in memory; use another file, or no --low-memory.")
    lora = {name.removesuffix(".up"): tensor for name, tensor in tensors.items() if name.endswith(".up")}
    if lora:  # the other tensors of a control-LoRA are whole
        whole = {name: tensor for name, tensor in tensors.items() if not name.endswith((".up", ".down"))}
        return {**own, **{f"{name}.weight": _with_low_rank(own, name, up, tensors, path) for name, up in lora.items()}, **whole}
    total = {name: own[name].float() + tensor.float() if name in own else tensor for name, tensor in tensors.items()}
    return {**own, **total}


def _with_low_rank(own: Mapping[str, Tensor], name: str, up: Tensor, tensors: Mapping[str, Tensor], path: Path) -> Tensor:
    """W + up·down of one layer of a control-LoRA, float32."""
    with config_errors(path):
        weight, down = own[f"{name}.weight"].float(), tensors[f"{name}.down"]
        return weight + (up.float().flatten(1) @ down.float().flatten(1)).reshape(weight.shape)


def _check_family(tensors: Mapping[str, Tensor], model: LatentDiffusion, path: Path) -> ControlNetConfig:
    """The config of a ControlNet. Raises DaguerreError if it is for UNets of another shape than the model's."""
    own = model.unet.config
    with config_errors(path):
        # Shapes determine all but the heads and the output, which are the UNet's.
        found = unet_from_shapes({**tensors, "conv_out.weight": torch.empty(own.out_channels, 1, 1, 1, device="meta")})
    if (found.channels, found.blocks) != (own.channels, own.blocks) or found.context_width not in (None, own.context_width):
        made_for, has = (_describe(config) for config in (found, own))
        raise DaguerreError(f"The ControlNet '{path}' is for models with {made_for}, and {model.name!r} has {has}; use one for its family.")
    if found.in_channels != model.latent_channels:
        raise DaguerreError(
            f"The ControlNet '{path}' takes {found.in_channels} channels, and the latents of {model.name!r} have {model.latent_channels}; "
            "use one for its family."
        )
    fields = ("in_channels", "depth", "mid_depth", "context_width", "vector_width", "classes", "linear_projection", "cross_only_levels")
    config = replace(own, **{name: getattr(found, name) for name in fields})
    embedding = "controlnet_cond_embedding"
    last = [len(tensors[f"{embedding}.blocks.{i}.weight"]) for i in range(1, 16, 2) if f"{embedding}.blocks.{i}.weight" in tensors]
    widths = [tensors[f"{embedding}.conv_in.weight"].shape[0], *last]
    return ControlNetConfig(config, tuple(widths), tensors[f"{embedding}.conv_in.weight"].shape[1])


def _describe(config: UNetConfig) -> str:
    return f"the channels {config.channels} and text width {config.context_width}"
