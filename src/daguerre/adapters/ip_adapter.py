"""IP-Adapters as adapters: an image as a prompt. The plain, plus and full kinds, for Stable Diffusion 1, 2 and XL.

    model = with_adapters(model, [load_ip_adapter("ip-adapter_sd15.bin", model).scaled(0.6)])
    generate(model, prompt="a house", control_images=[image])

They need the CLIP image encoder that they were trained with: ViT-H, or bigG for the first adapters of SDXL.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from daguerre.adapters.image_adapter import ImageAdapter
from daguerre.adapters.record import AdapterRecord, adapter_stem
from daguerre.errors import DaguerreError, join_names
from daguerre.models.clip import CLIPVision, CLIPVisionConfig
from daguerre.models.ip_adapter import (
    FullProjection,
    ImageAttention,
    ImageKeys,
    ImageProjection,
    PooledProjection,
    Resampler,
    image_states,
)
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.attention import Attention, TransformerBlock
from daguerre.nn.cpu.prepack import shallow_copy
from daguerre.nn.meta import fill, shapes_only
from daguerre.weights.diffusers.load import load_image_encoder
from daguerre.weights.hashing import file_hash
from daguerre.weights.tensors.reader import open_tensors
from daguerre.weights.tensors.safetensors import config_errors, to_compute_layout

KEYS = re.compile(r"ip_adapter\.(\d+)\.to_([kv])_ip\.weight$")
PROJECTION = "image_proj."
ENCODER_FOLDER = "image_encoder"  # of the published files, next to them or in the folder `models` next to their own


@dataclass(frozen=True, eq=False)
class IPAdapter(ImageAdapter):
    """An IP-Adapter for one model.

    keys: the weights of K' and V' for each cross-attention, in the order down, up, middle. encoder: of the images.
    """

    projection: ImageProjection
    keys: tuple[tuple[Tensor, Tensor], ...]
    encoder: CLIPVision

    def with_images(self, count: int) -> "IPAdapter":
        """The same for several images of the request."""
        return replace(self, record=replace(self.record, images=count))

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens (1, N, D) of all images together, and those of the negative condition.

        The latter come from an embedding of zeros, or, of an adapter that reads hidden states, from an image of zeros.

        Args:
            pixels: (n, 3, size, size), normalised as for CLIP.
        """
        pixels = pixels.to(self.encoder.vision_model.embeddings.class_embedding)
        states = image_states(self.projection, self.encoder(pixels))
        zeros = (
            image_states(self.projection, self.encoder(torch.zeros_like(pixels))) if self.projection.hidden else torch.zeros_like(states)
        )
        positive, negative = (self.projection(each).flatten(0, 1)[None] for each in (states, zeros))
        return positive, negative


def cross_attention_paths(unet: UNet) -> list[str]:
    """The cross-attentions in the order in which files number them: down, up, middle."""
    order = {"down_blocks": 0, "up_blocks": 1, "mid_block": 2}
    names = [f"{name}.attn2" for name, module in unet.named_modules() if isinstance(module, TransformerBlock)]
    return sorted(names, key=lambda name: order[name.partition(".")[0]])


def with_image_attention(unet: UNet, adapters: Sequence[tuple[IPAdapter, int]]) -> UNet:
    """A UNet whose cross-attentions attend to image tokens, too; it shares all weights, and is the UNet itself without adapters.

    Args:
        adapters: each with the number of its tokens. The context is the text, then the tokens of each adapter in order.
    """
    if not adapters:
        return unet
    adapted = shallow_copy(unet, lambda _: None)
    for number, path in enumerate(cross_attention_paths(adapted)):
        block, name = adapted.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
        layer = block.get_submodule(name)
        assert isinstance(layer, Attention)
        keys = [ImageKeys(*adapter.keys[number], tokens, adapter.record.scale) for adapter, tokens in adapters]
        block._modules[name] = ImageAttention.over(layer, keys)
    return adapted


def load_ip_adapter(path: str | Path, model: LatentDiffusion, *, encoder: str | Path | None = None) -> IPAdapter:
    """Read an IP-Adapter in the precision and on the device of the model it is for.

    Args:
        encoder: the folder or file of its CLIP image encoder. Default: the folder `image_encoder` next to it.

    Raises:
        DaguerreError: it is no IP-Adapter, of a kind that is not supported, or for another family of models; or the image encoder is
            missing or another one.
    """
    path = Path(path)
    file = open_tensors(path)
    kind = ip_adapter_kind(file.shapes)
    if kind is None:
        raise DaguerreError(f"'{path}' is no IP-Adapter: it has names such as {join_names(list(file.shapes)[:3])}.")
    if kind == "faceid":
        raise DaguerreError(f"'{path}' is an IP-Adapter FaceID, which is not supported; use a plain, plus or full IP-Adapter.")
    tensors = {name: to_compute_layout(tensor, model.device, model.dtype) for name, tensor in file.read().items()}
    keys = _keys_for(tensors, model, path)
    own = {name.removeprefix(PROJECTION): tensor for name, tensor in tensors.items() if name.startswith(PROJECTION)}
    with config_errors(path), shapes_only():
        projection = _projection(kind, own, keys[0][0].shape[1])
    fill(projection, own, path)
    record = AdapterRecord("ip-adapter", adapter_stem(path), str(path), file_hash(path), encoder=None if encoder is None else str(encoder))
    vision = _load_encoder(path, None if encoder is None else Path(encoder), projection, model)
    return IPAdapter(record, projection.eval(), keys, vision)


def ip_adapter_kind(shapes: Mapping[str, Tensor]) -> str | None:
    """plain, plus, full or faceid from the names in a file; None if it is no IP-Adapter."""
    if not any(name.startswith((PROJECTION, "ip_adapter.")) for name in shapes):
        return None
    marks = {"image_proj.latents": "plus", "image_proj.proj.3.weight": "full", "image_proj.proj.weight": "plain"}
    # A FaceID adapter has LoRAs, or at least another projection, from the embedding of a face.
    face = any("_lora." in name for name in shapes)
    return "faceid" if face else next((kind for name, kind in marks.items() if name in shapes), "faceid")


def _keys_for(tensors: Mapping[str, Tensor], model: LatentDiffusion, path: Path) -> tuple[tuple[Tensor, Tensor], ...]:
    """K' and V' of each cross-attention of the model. Raises DaguerreError if they are for another model."""
    found = {(int(match[1]), match[2]): tensor for name, tensor in tensors.items() if (match := KEYS.match(name))}
    numbers = sorted({number for number, _ in found})
    keys = tuple((found[number, "k"], found[number, "v"]) for number in numbers if (number, "k") in found and (number, "v") in found)
    layers = [model.unet.get_submodule(each) for each in cross_attention_paths(model.unet)]
    needed = [tuple(layer.to_k.weight.shape) for layer in layers if isinstance(layer, Attention)]
    if model.unet.config.cross_only_levels or [tuple(k.shape) for k, _ in keys] != needed or any(k.shape != v.shape for k, v in keys):
        widths = f"text width {keys[0][0].shape[1]}" if keys else "none"
        own = f"text width {model.unet.config.context_width}"
        raise DaguerreError(
            f"The IP-Adapter '{path}' has {len(keys)} cross-attentions ({widths}), and {model.name!r} has {len(needed)} ({own}); "
            "use one for its family."
        )
    return keys


def _projection(kind: str, tensors: Mapping[str, Tensor], width: int) -> ImageProjection:
    """The projection of an adapter on the meta device. Raises KeyError and others if a tensor is missing."""
    if kind == "plain":
        tokens = len(tensors["proj.weight"]) // width
        return PooledProjection(tensors["proj.weight"].shape[1], width, tokens)
    if kind == "full":
        return FullProjection(tensors["proj.0.weight"].shape[1], width)
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("layers."))
    return Resampler(
        tensors["proj_in.weight"].shape[1],
        len(tensors["proj_in.weight"]),
        len(tensors["proj_out.weight"]),
        tensors["latents"].shape[1],
        depth,
        len(tensors["layers.0.0.to_q.weight"]),
        len(tensors["layers.0.1.1.weight"]),
    )


def _load_encoder(path: Path, given: Path | None, projection: ImageProjection, model: LatentDiffusion) -> CLIPVision:
    """The image encoder of an adapter. Raises DaguerreError if it is missing, or of another width than the adapter needs."""
    nearby = [path.parent / ENCODER_FOLDER, path.parent.parent / "models" / ENCODER_FOLDER]
    candidates = [given] if given is not None else [folder for folder in nearby if folder.is_dir()]
    if not candidates:
        raise DaguerreError(
            f"The IP-Adapter '{path}' needs its CLIP image encoder, and there is no folder '{nearby[0]}'; give its folder or file with "
            "--image-encoder."
        )
    errors = []
    for source in candidates:
        vision = load_vision(source, model)
        width = vision.config.width if projection.hidden else vision.config.projection
        if width == projection.in_width:
            return vision
        errors.append(f"'{source}' gives {width}")
    raise DaguerreError(
        f"The IP-Adapter '{path}' needs an image encoder whose {'hidden states' if projection.hidden else 'embeddings'} have the width "
        f"{projection.in_width}, and {' and '.join(errors)}; give the one that it was trained with (--image-encoder)."
    )


def load_vision(source: Path, model: LatentDiffusion) -> CLIPVision:
    """A CLIP image encoder from a folder of transformers or from one file with its names.

    Raises:
        DaguerreError: there is none.
    """
    if not source.exists():
        raise DaguerreError(f"There is no image encoder '{source}'; check the path.")
    if source.is_dir():
        return load_image_encoder(source, device=model.device, dtype=model.dtype)
    file = open_tensors(source)
    names = [name for name in file.shapes if name.startswith(("vision_model.", "visual_projection.")) and not name.endswith("position_ids")]
    if "vision_model.embeddings.patch_embedding.weight" not in names:
        raise DaguerreError(f"'{source}' is no CLIP image encoder with the names of transformers; use its folder, or such a file.")
    tensors = {name: to_compute_layout(tensor, model.device, model.dtype) for name, tensor in file.read(names).items()}
    with config_errors(source), shapes_only():
        vision = CLIPVision(_vision_config(tensors))
    fill(vision, tensors, source)
    return vision.eval()


def _vision_config(tensors: Mapping[str, Tensor]) -> CLIPVisionConfig:
    """The config of an image encoder. Shapes give neither the heads, 16 in most published ones, nor the activation: OpenCLIP's is GELU."""
    width, channels, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
    positions = len(tensors["vision_model.embeddings.position_embedding.weight"]) - 1
    layers = {name.split(".")[3] for name in tensors if name.startswith("vision_model.encoder.layers.")}
    projection = tensors.get("visual_projection.weight")
    return CLIPVisionConfig(
        size=round(positions**0.5) * patch,
        patch=patch,
        channels=channels,
        width=width,
        layers=len(layers),
        heads=12 if width == 768 else 16,
        mlp_width=len(tensors["vision_model.encoder.layers.0.mlp.fc1.weight"]),
        activation="quick_gelu" if width <= 1024 else "gelu",
        projection=None if projection is None else len(projection),
    )
