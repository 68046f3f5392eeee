"""The networks of a model as trees of blocks with shapes and parameters, computed on the meta device: no weight is read."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.models.autoencoder_kl import AutoencoderKL
from daguerre.models.clip import CLIPBlock, CLIPText, CLIPVision
from daguerre.models.ldm_bert import LDMBert, LDMBertBlock
from daguerre.models.unet import UNet
from daguerre.models.vq_model import VQModel
from daguerre.nn.attention import AttentionBlock, SpatialTransformer
from daguerre.nn.embeddings import EmbeddingMLP
from daguerre.nn.meta import shapes_only
from daguerre.nn.resample import Downsample, Upsample
from daguerre.nn.resblock import ResBlock
from daguerre.weights.catalog import INDEX, LATENT_PRIOR
from daguerre.weights.diffusers.folder_names import CONFIG_FILE
from daguerre.weights.loading import resolve_path
from daguerre.weights.original.detect import detect
from daguerre.weights.tensors.reader import open_tensors
from daguerre.weights.tensors.safetensors import config_errors, read_json

WHOLE = (ResBlock, AttentionBlock, SpatialTransformer, Downsample, Upsample, EmbeddingMLP, CLIPBlock, LDMBertBlock)  # not opened further
BLOCK_LEVELS = 4
DEFAULT_TOKENS = 77
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """A network or a part of one. input, output: shapes without the batch, for one image or prompt; None if unknown."""

    name: str
    kind: str
    input: Shape | None
    output: Shape | None
    parameters: int
    blocks: tuple["Block", ...] = ()

    def lines(self) -> list[str]:
        """As a tree, with columns for shapes and parameters."""
        rows = [*_rows(self, "", "")]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        return [f"{tree:<{widths[0]}}  {shapes:<{widths[1]}}  {count}".rstrip() for tree, shapes, count in rows]

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def _rows(block: Block, first: str, others: str) -> list[tuple[str, str, str]]:
    shapes = "" if block.output is None else f"{_shape(block.input)} → {_shape(block.output)}"
    rows = [(f"{first}{block.name}  {block.kind}", shapes, f"{block.parameters:>13,}")]
    for i, child in enumerate(block.blocks):
        last = i == len(block.blocks) - 1
        rows += _rows(child, others + ("└─ " if last else "├─ "), others + ("   " if last else "│  "))
    return rows


def _shape(shape: Shape | None) -> str:
    return "×".join(map(str, shape)) if shape else "1"


def block_trees(source: str | Path | None, *, variant: str | None = None) -> list[Block]:
    """The tree of each network of a model or of a checkpoint.

    Args:
        source: as for `load`. Only headers are read.
        variant: of a folder's files, such as "fp16".

    Raises:
        DaguerreError: there is no such model, or its networks are not supported.
    """
    path = resolve_path(source, offline=False, variant=variant)
    if (path / INDEX).is_file() and read_json(path / INDEX).get("_class_name") == LATENT_PRIOR:
        return [block_tree(name, network, 64) for name, network in _prior_networks(path).items()]
    detected = detect(open_tensors(path, variant=variant))
    texts = [network.config.length for network in detected.networks.values() if isinstance(network, CLIPText | LDMBert)]
    tokens = texts[0] if texts else 1 if "condition" in detected.networks else DEFAULT_TOKENS
    f = 1 if detected.autoencoder is None else 2 ** (len(detected.autoencoder.channels) - 1)
    latent_side = max(detected.sample_size // f, 1)
    return [
        block_tree(name, network, latent_side if isinstance(network, UNet) else detected.sample_size, tokens)
        for name, network in detected.networks.items()
    ]


def _prior_networks(folder: Path) -> dict[str, nn.Module]:
    """The networks of a prior over codes, on the meta device."""
    from daguerre.weights.diffusers.prior import FIRST_STAGE_FOLDER, MAP_FOLDER, PRIOR_FOLDER, build_untrained
    from daguerre.weights.diffusers.vae_config import vq_config

    networks: dict[str, nn.Module] = {}
    for part in (FIRST_STAGE_FOLDER, PRIOR_FOLDER, MAP_FOLDER):
        where = folder / part / CONFIG_FILE
        if where.is_file():
            given = read_json(where)
            with config_errors(where), shapes_only():
                networks[part] = build_untrained(given, where) if part == PRIOR_FOLDER else VQModel(vq_config(given, where))
    return networks


def block_tree(name: str, network: nn.Module, side: int, tokens: int = DEFAULT_TOKENS) -> Block:
    """The tree of one network on the meta device.

    Args:
        side: of its input image or latent.
        tokens: of a UNet's context.
    """
    shapes: dict[nn.Module, tuple[Shape | None, Shape | None]] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shapes.setdefault(module, (_first_shape(inputs), _first_shape((output,))))

    hooks = [module.register_forward_hook(record) for module in network.modules()]
    try:
        run = _example_run(network.eval(), side, tokens)
        if run is not None:
            with torch.device("meta"):  # with gradients, because without them large images pass through autoencoders in chunks
                shapes[network] = run()
    finally:
        for hook in hooks:
            hook.remove()
    return _block(name, network, shapes, 0)


def _first_shape(values: tuple[Any, ...]) -> Shape | None:
    flat = [item for value in values for item in (value if isinstance(value, tuple | list) else (value,))]
    return next((tuple(value.shape[1:]) for value in flat if isinstance(value, Tensor)), None)


def _block(name: str, module: nn.Module, shapes: dict[nn.Module, tuple[Shape | None, Shape | None]], depth: int) -> Block:
    children: list[Block] = []
    for child_name, child in module.named_children() if depth < BLOCK_LEVELS and not isinstance(module, WHOLE) else ():
        members = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
        for number, member in members:
            children.append(_block(f"{child_name}.{number}".rstrip("."), member, shapes, depth + 1))
    count = sum(parameter.numel() for parameter in module.parameters())
    with_weights = tuple(child for child in children if child.parameters)
    return Block(name, type(module).__name__, *shapes.get(module, (None, None)), count, with_weights)


def _example_run(network: nn.Module, side: int, tokens: int) -> Callable[[], tuple[Shape, Shape]] | None:
    """A function that runs a network on one example and returns the shapes of its input and output; None for an unknown network."""

    def shapes(x: Tensor, y: Tensor) -> tuple[Shape, Shape]:
        return tuple(x.shape[1:]), tuple(y.shape[1:])

    def unet() -> tuple[Shape, Shape]:
        assert isinstance(network, UNet)
        config, x = network.config, torch.empty(1, network.config.in_channels, side, side)
        cond = Conditioning(
            context=None if config.context_width is None else torch.empty(1, tokens, config.context_width),
            vector=None if config.vector_width is None else torch.empty(1, config.vector_width),
            label=torch.empty(1, dtype=torch.int64) if config.classes else None,
        )
        return shapes(x, network(x, torch.empty(1), cond))

    def first_stage() -> tuple[Shape, Shape]:
        assert isinstance(network, AutoencoderKL | VQModel)
        x = torch.empty(1, network.config.in_channels, side, side)
        if isinstance(network, AutoencoderKL):
            return shapes(x, network.decode(network.encode(x)))
        return shapes(x, network.decoder(network.post_quant_conv(network.quant_conv(network.encoder(x)))))

    def text() -> tuple[Shape, Shape]:
        assert isinstance(network, CLIPText | LDMBert)
        ids = torch.empty(1, network.config.length, dtype=torch.int64)
        states = network(ids)
        return shapes(ids, states if isinstance(states, Tensor) else states.last)

    def vision() -> tuple[Shape, Shape]:
        assert isinstance(network, CLIPVision)
        x = torch.empty(1, network.config.channels, network.config.size, network.config.size)
        return shapes(x, network(x).pooled)

    kinds: dict[type[nn.Module], Callable[[], tuple[Shape, Shape]]] = {
        UNet: unet,
        AutoencoderKL: first_stage,
        VQModel: first_stage,
        CLIPText: text,
        LDMBert: text,
        CLIPVision: vision,
    }
    return kinds.get(type(network))
