"""T2I-Adapters as adapters: read from the names of the original code or of diffusers, full or light, for Stable Diffusion 1, 2 and XL."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from daguerre.adapters.image_adapter import ImageAdapter
from daguerre.adapters.record import AdapterRecord, adapter_stem
from daguerre.errors import DaguerreError, join_names
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.t2i_adapter import T2IAdapterConfig, T2IAdapterModel
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.hashing import file_hash
from daguerre.weights.tensors.reader import open_tensors, weights_in
from daguerre.weights.tensors.safetensors import to_compute_layout

MAP_WIDTHS = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}  # channels and factor of the map, by the first layer's input


@dataclass(frozen=True, eq=False)
class T2IAdapter(ImageAdapter):
    """A T2I-Adapter for one model."""

    network: T2IAdapterModel

    def features(self, control_map: Tensor) -> list[Tensor]:
        """The features for `UNet.forward`, scaled, of a map (1, C, H, W) in [0, 1]."""
        return [self.record.scale * feature for feature in self.network(control_map)]


def load_t2i_adapter(path: str | Path, model: LatentDiffusion) -> T2IAdapter:
    """Read a T2I-Adapter from a file, or from a folder of diffusers, in the precision and on the device of the model it is for.

    Raises:
        DaguerreError: it is no T2I-Adapter, or for another family of models.
    """
    path = Path(path)
    source = weights_in(path) if path.is_dir() else path
    tensors = canonical_tensors(open_tensors(source).read(), path)
    config = t2i_config(tensors, path)
    _check_family(config, model, path)
    with shapes_only():
        network = T2IAdapterModel(config)
    fill(network, {name: to_compute_layout(tensor, model.device, model.dtype) for name, tensor in tensors.items()}, path)
    return T2IAdapter(AdapterRecord("t2i-adapter", adapter_stem(path), str(path), file_hash(source)), network.eval())


def canonical_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of a T2I-Adapter under the names of diffusers. Raises DaguerreError if there are none.

    The original code counts the residual blocks of all levels of a full adapter, and those of each level of a light one.
    """
    tensors = {name.removeprefix("adapter."): tensor for name, tensor in tensors.items()}
    if any(name.startswith("style_embedding") for name in tensors):
        raise DaguerreError(f"'{path}' is a T2I style adapter, which is not supported; use an IP-Adapter for the style of an image.")
    if not any(name.startswith("body.") for name in tensors):
        raise DaguerreError(f"'{path}' is no T2I-Adapter: it has names such as {join_names(list(tensors)[:3])}.")
    if any(".resnets." in name for name in tensors):
        return tensors
    if "conv_in.weight" not in tensors:
        return {re.sub(r"^(body\.\d+)\.body\.", r"\1.resnets.", name): tensor for name, tensor in tensors.items()}
    blocks = max((len({name.split(".")[1] for name in tensors if name.startswith("body.")}) // 4), 1)
    return {_numbered_by_level(name, blocks): tensor for name, tensor in tensors.items()}


def _numbered_by_level(name: str, blocks: int) -> str:
    """`body.5.block1.weight` as `body.2.resnets.1.block1.weight`, for two residual blocks per level."""
    if not (found := re.match(r"body\.(\d+)\.(.*)", name)):
        return name
    level, block = divmod(int(found[1]), blocks)
    return f"body.{level}.{found[2]}" if found[2].startswith("in_conv.") else f"body.{level}.resnets.{block}.{found[2]}"


def t2i_config(tensors: Mapping[str, Tensor], path: Path) -> T2IAdapterConfig:
    """The config of a T2I-Adapter from its tensors under the names of diffusers. Raises DaguerreError if they do not fit."""
    light = "conv_in.weight" not in tensors
    first = tensors.get("body.0.in_conv.weight" if light else "conv_in.weight")
    levels = {int(name.split(".")[1]) for name in tensors if name.startswith("body.")}
    blocks = {int(name.split(".")[3]) for name in tensors if name.startswith("body.0.resnets.")}
    ends = [tensors.get(f"body.{level}." + ("out_conv.weight" if light else "resnets.0.block1.weight")) for level in sorted(levels)]
    channels = [len(weight) for weight in ends if weight is not None]
    if first is None or first.shape[1] not in MAP_WIDTHS or not blocks or len(channels) != len(levels):
        raise DaguerreError(f"'{path}' is no T2I-Adapter of a known form; use a full or light one for Stable Diffusion 1, 2 or XL.")
    map_channels, factor = MAP_WIDTHS[first.shape[1]]
    # SDXL's first and last level have no downsampling of their own in front of them.
    halved = tuple(level == 2 if factor == 16 else level > 0 for level in range(len(levels)))
    return T2IAdapterConfig(map_channels, factor, tuple(channels), halved, len(blocks), light)


def _check_family(config: T2IAdapterConfig, model: LatentDiffusion, path: Path) -> None:
    own = model.unet.config
    xl = own.depth[0] == 0
    channels = (*own.channels, own.channels[-1]) if xl else own.channels
    factor = model.autoencoder.downsample_factor * (2 if xl else 1)
    if (config.channels, config.factor) != (channels, factor):
        raise DaguerreError(
            f"The T2I-Adapter '{path}' is for models with features of the channels {config.channels} at 1/{config.factor} of the image, "
            f"and {model.name!r} has {channels} at 1/{factor}; use one for its family."
        )
