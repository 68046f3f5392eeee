"""Train a LoRA: a change of low rank for each chosen layer of a frozen UNet, and on request of its text encoders.

    W'·x = W·x + s·up(down(x)),   s = alpha / rank                    LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1)
    W'·x = m / ‖V‖ · V·x,   V = W + s·up·down, ‖V‖ of each row        DoRA (Liu et al. 2024, arXiv:2402.09353, equations 5 and 11)

up starts at 0 and m at ‖W‖, so training starts from the model. The layers compute the changes from their inputs; the changed weights and
their gradients are never stored.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.adapters.attach import adapted_networks, matched_layers, text_encoders_of
from daguerre.adapters.lora.lora import Lora, LoraLayer
from daguerre.adapters.lora.module_names import LayerName, NetworkRole
from daguerre.adapters.lora.weight_delta import DoRA, LowRank, scale_of
from daguerre.adapters.record import AdapterRecord
from daguerre.conditioning import SDXLConditioner, TextConditioner
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss
from daguerre.training.objectives.adapters.frozen_model import AdaptedModel, AdapterTask
from daguerre.training.options.adapters.lora import LoraLayerOptions, LoraOptions

TRAINED_TEXT_LAYERS = re.compile(r"encoder\.layers\.(\d+)\.(self_attn|mlp)\.")
Base = nn.Linear | nn.Conv2d
LayerPath = tuple[NetworkRole, str]  # a network, and the path of a layer in it


class LowRankLayer(nn.Module):
    """The trained tensors of one layer: down (r, in) and up (out, r), for a convolution (r, in, k, k) and (out, r, 1, 1), float32.

    magnitude: (out,) with DoRA, else None.
    """

    def __init__(self, delta: LowRank, magnitude: Tensor | None = None):
        super().__init__()
        self.down, self.up = nn.Parameter(delta.down.float().clone()), nn.Parameter(delta.up.float().clone())
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude.float().flatten().clone())
        self.alpha = float(delta.rank if delta.alpha is None else delta.alpha)

    def forward(self, base: Base, x: Tensor, output: Tensor) -> Tensor:
        """The changed output of a layer, from its input and its own output."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)  # of a base in half precision
        if isinstance(base, nn.Conv2d):
            change = F.conv2d(F.conv2d(x, down, None, base.stride, base.padding, base.dilation), up)
        else:
            change = F.linear(F.linear(x, down), up)
        change = change * scale_of(self.alpha, len(self.down))
        if self.magnitude is None:
            return output + change.to(output.dtype)
        channels = (1, -1, *[1] * (x.ndim - 2)) if isinstance(base, nn.Conv2d) else (-1,)
        bias = 0 if base.bias is None else base.bias.view(channels)
        gain = (self.magnitude / self._norm(base.weight)).view(channels)
        return ((output - bias + change) * gain + bias).to(output.dtype)

    @torch.no_grad()
    def _norm(self, weight: Tensor) -> Tensor:
        """‖V‖ of each row, (out,); a constant for the gradient, as in section 4.3 of the paper, which saves memory."""
        return (weight.float().flatten(1) + self.delta.matrix()).norm(dim=1)

    @property
    def delta(self) -> LowRank:
        """The change without the magnitude."""
        return LowRank(self.down.detach(), self.up.detach(), self.alpha)

    @property
    def value(self) -> LoraLayer:
        """As a layer of a LoRA, on the same memory."""
        if self.magnitude is None:
            return LoraLayer(self.delta)
        return LoraLayer(DoRA(self.delta, self.magnitude.detach().view(-1, *[1] * (self.down.ndim - 1))))


class LoraNetwork(AdaptedModel):
    """The trained layers of a LoRA."""

    def __init__(self, model: LatentDiffusion, layers: Mapping[LayerPath, LowRankLayer], *, cached: bool = True):
        """cached: encode each caption only once, unless a text encoder is trained."""
        super().__init__(model, cached=cached and all(role == "unet" for role, _ in layers))
        self.paths = tuple(layers)
        self.layers = nn.ModuleList(layers.values())
        self._suspended = False

    @contextmanager
    def attached(self) -> Iterator[None]:
        networks = adapted_networks(self.model)
        with ExitStack() as stack:
            for (role, path), layer in zip(self.paths, self.layers, strict=True):
                hook = partial(self._with_change, layer)
                stack.callback(networks[role].get_submodule(path).register_forward_hook(hook).remove)
            yield

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside the block the model computes without the changes, also inside `attached()`."""
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False

    def _with_change(self, layer: nn.Module, base: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output if self._suspended else layer(base, inputs[0], output)

    def value(self, name: str, metadata: Mapping[str, str]) -> Lora:
        """The LoRA as it is now, on the same memory."""
        layers = {}
        for (role, path), layer in zip(self.paths, self.layers, strict=True):
            assert isinstance(layer, LowRankLayer)
            layers[LayerName(role, path.replace(".", "_"))] = layer.value
        return Lora(layers, AdapterRecord("lora", name), metadata=metadata)

    @property
    def sizes(self) -> dict[str, str]:
        """Rank and alpha as kohya's header has them: the largest of all layers."""
        found = [(len(layer.down), layer.alpha) for layer in self.layers if isinstance(layer, LowRankLayer)]
        return {"ss_network_dim": str(max(found)[0]), "ss_network_alpha": str(max(found)[1])}


def new_layers(model: LatentDiffusion, options: LoraLayerOptions) -> dict[LayerPath, LowRankLayer]:
    """Layers of a new LoRA that changes nothing yet. Uses torch's global generator.

    Raises:
        DaguerreError: no layer of the UNet has a path that the pattern matches.
    """
    candidates = _changeable("unet", model.unet)
    chosen = {path: base for path, base in candidates.items() if re.search(options.modules, path[1])}
    if not chosen:
        raise DaguerreError(
            f"No layer of the UNet matches --modules {options.modules!r}. Its layers have paths such as {next(iter(candidates))[1]}; "
            "an example is --modules attn."
        )
    if isinstance(options, LoraOptions) and options.train_text_encoder:
        text = _text_layers(model)
        if not text:
            raise DaguerreError(f"{model.name} has no CLIP text encoder to train; remove --train-text-encoder.")
        chosen |= text
    return {path: _new_layer(base, options) for path, base in chosen.items()}


def layers_of(lora: Lora, model: LatentDiffusion) -> dict[LayerPath, LowRankLayer]:
    """The layers of a LoRA, to train them further.

    Raises:
        DaguerreError: a layer is not in the model, is of a kind that training does not know, or has another shape than the model's.
    """
    networks, name = adapted_networks(model), lora.record.name
    matched = matched_layers(lora, networks)
    missing = [layer.path for layer in lora.layers if layer not in matched]
    if missing or not matched:
        raise DaguerreError(
            f"The LoRA {name!r} has layers that {model.name} has not, such as {missing[:1]}; use the model it was made for."
        )
    found = {}
    for layer, (role, targets) in matched.items():
        change, target = lora.layers[layer], targets[0]
        delta = change.weight.inner if isinstance(change.weight, DoRA) else change.weight
        magnitude = change.weight.magnitude if isinstance(change.weight, DoRA) else None
        per_output = magnitude is None or magnitude.shape[0] != 1
        if not isinstance(delta, LowRank) or delta.mid is not None or change.bias or target.parts > 1 or len(targets) > 1 or not per_output:
            raise DaguerreError(
                f"{layer.path} of the LoRA {name!r} is no plain LoRA or DoRA, and only these can be trained further; "
                "`daguerre convert --rank` makes one of most other kinds."
            )
        base = networks[role].get_submodule(target.path)
        found[role, target.path] = LowRankLayer(_shaped_like(delta, base, name, target.path), magnitude)
    return found


def _shaped_like(delta: LowRank, base: nn.Module, name: str, path: str) -> LowRank:
    """The same tensors with the dimensions of a layer: some programs write 1×1 convolutions as matrices, or the reverse."""
    if not isinstance(base, Base) or len(delta.up) * delta.in_features != base.weight.numel() or len(delta.up) != len(base.weight):
        raise DaguerreError(f"The LoRA {name!r} does not fit {path} of this model; use the model it was made for.")
    kernel = base.weight.shape[1:]
    return replace(delta, down=delta.down.reshape(-1, *kernel), up=delta.up.reshape(len(delta.up), -1, *[1] * (len(kernel) - 1)))


def _new_layer(base: Base, options: LoraLayerOptions) -> LowRankLayer:
    kernel = base.weight.shape[1:]
    down, up = torch.empty(options.rank, *kernel), torch.zeros(len(base.weight), options.rank, *[1] * (len(kernel) - 1))
    nn.init.kaiming_uniform_(down, a=sqrt(5))
    magnitude = base.weight.detach().float().flatten(1).norm(dim=1) if options.dora else None
    return LowRankLayer(LowRank(down, up, options.alpha), magnitude)


def _changeable(role: NetworkRole, network: nn.Module) -> dict[LayerPath, Base]:
    return {(role, path): layer for path, layer in network.named_modules() if isinstance(layer, Base)}


def _text_layers(model: LatentDiffusion) -> dict[LayerPath, Base]:
    """The linear layers of the text encoders that the UNet's condition depends on."""
    conditioner, found = model.conditioner, {}
    towers = conditioner.towers if isinstance(conditioner, SDXLConditioner) else [conditioner]
    for role, tower in zip(text_encoders_of(model), towers, strict=False):  # a conditioner without a text encoder has no role
        assert isinstance(tower, TextConditioner)
        pooled = isinstance(conditioner, SDXLConditioner) and tower is towers[-1]  # the pooled text depends on the last layer, too
        used = tower.encoder.config.layers + (0 if pooled else tower.layer + 1)
        for path, base in _changeable(role, tower.encoder).items():
            match = TRAINED_TEXT_LAYERS.search(path[1])
            if match and int(match[1]) < used:
                found[path] = base
    return found


class LoraTask(AdapterTask):
    """Trains the layers of a LoRA."""

    name = "lora"

    def __init__(self, network: LoraNetwork, weights: DiffusionLoss, options: LoraOptions, preview_prompts: Sequence[str]):
        super().__init__(network, weights, preview_prompts)
        self.options = options

    def captions(self, captions: list[str], random: BatchRandom) -> list[str]:
        if not self.options.shuffle_captions:
            return captions
        pairs = zip(captions, random.generators(), strict=True)
        return [shuffle_caption(caption, self.options.keep_tokens, generator) for caption, generator in pairs]

    def noise(self, shape: Sequence[int], random: BatchRandom, device: torch.device) -> Tensor:
        eps = super().noise(shape, random, device)
        if self.options.noise_offset:
            eps = eps + self.options.noise_offset * random.normal((shape[0], 1, 1), device)
        return eps


def shuffle_caption(caption: str, kept: int, generator: torch.Generator) -> str:
    """The parts of a caption that commas separate in a random order, after the first `kept`, which stay."""
    parts = [part.strip() for part in caption.split(",")]
    order = torch.randperm(max(len(parts) - kept, 0), generator=generator).tolist()
    return ", ".join([*parts[:kept], *(parts[kept + index] for index in order)])
