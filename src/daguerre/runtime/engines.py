"""Engines: what computes the UNet in a run. An engine is a value; `engine(model)` is the model with that engine.

    model = OpenVINO()(load("v1-5.safetensors"))

torch     the default: PyTorch, prepacked for this processor (see `nn.cpu.prepack`)
compile   torch.compile, for GPUs: each repeated block is compiled once
openvino  static graphs of OpenVINO, for processors, compiled once and kept on the disk

All give the same images within the rounding of their dtype. Weights are those of the model in the run: adapters may be attached before or
after. Text encoder, autoencoder and ControlNets, which take a small part of the time, are computed by PyTorch. A run that an engine cannot
do, such as one that records attention maps, is done by the default engine, and a line says so.
"""

import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from daguerre.diffusion.conditioning import Conditioning
from daguerre.errors import DaguerreError, nearest
from daguerre.models.latent_diffusion import Engine, LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.nn.attention import Attention, AttentionBlock, TransformerBlock
from daguerre.nn.cpu.prepack import prepack, shallow_copy
from daguerre.nn.resblock import ResBlock
from daguerre.runtime.network_hash import network_hash
from daguerre.runtime.offload import loaded
from daguerre.runtime.openvino_graphs import (
    PRECISIONS,
    Graph,
    Signature,
    compile_graph,
    flatten,
    graph_folder,
    graph_key,
    read_graph,
    runner,
    write_graph,
)

ENGINE_NAMES = ("torch", "compile", "openvino")
MAX_COMPILED_SHAPES = 64  # of one kind of block, before torch.compile gives up on it
GRAPHS_IN_MEMORY = 2  # of one network; each holds a copy of all weights
UNetCall = Callable[..., Tensor]  # (x, t, cond, control=None, features=()) to the prediction

log = logging.getLogger(__name__)


def with_engine(model: LatentDiffusion, engine: Engine) -> LatentDiffusion:
    """The model, and its refiner, computed by an engine."""
    return replace(model, engine=engine, refiner=model.refiner and with_engine(model.refiner, engine))


def engine_of(model: LatentDiffusion) -> Engine:
    """The engine of a model."""
    return model.engine or Torch()


def engine_by_name(name: str, device: torch.device) -> "Torch | Compile | OpenVINO":
    """The engine of a name, for models on a device.

    Raises:
        DaguerreError: there is no such engine, it is not installed, or it does not compute on this device.
    """
    engines = {engine.name: engine for engine in (Torch(), Compile(), OpenVINO())}
    if name not in engines:
        raise DaguerreError(f"There is no engine {name!r}; there are {', '.join(ENGINE_NAMES)}.{nearest(name, ENGINE_NAMES)}")
    engines[name].check(device)
    return engines[name]


@dataclass(frozen=True)
class Torch:
    """PyTorch: on a CPU with prepacked weights and the fastest algorithms."""

    name: ClassVar[str] = "torch"

    def __call__(self, model: LatentDiffusion) -> LatentDiffusion:
        return with_engine(model, self)

    def check(self, device: torch.device) -> None:
        """It always can."""

    def prepare(self, unet: UNet, *, low_memory: bool = False) -> UNetCall:
        return prepack(unet, copies=not low_memory)


@dataclass(frozen=True)
class Compile:
    """torch.compile of every residual and transformer block: blocks of the same shapes are compiled once, which takes a tenth of the time
    that the whole network takes. On a CPU the default engine is faster.

    backend, mode: as torch.compile takes them.
    """

    backend: str | Callable[..., Any] = "inductor"
    mode: str | None = None
    name: ClassVar[str] = "compile"

    def __call__(self, model: LatentDiffusion) -> LatentDiffusion:
        self.check(model.device)
        return with_engine(model, self)

    def check(self, device: torch.device) -> None:
        """Raise DaguerreError without the compiler that the backend needs on this device."""
        if self.backend != "inductor":
            return
        if device.type == "cpu" and not any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name):
            raise DaguerreError("The engine compile needs a C++ compiler, and there is none; install g++, or use --engine torch.")
        if device.type == "cuda" and find_spec("triton") is None:
            raise DaguerreError("The engine compile needs triton; install it with `pip install triton`, or use --engine torch.")

    def prepare(self, unet: UNet, *, low_memory: bool = False) -> UNetCall:
        if (reason := changed_for_a_run(unet)) is not None:
            return _default(self.name, reason, unet, low_memory)

        def compiled(module: nn.Module) -> Callable[..., Tensor] | None:
            repeated = isinstance(module, ResBlock | TransformerBlock)
            return torch.compile(module.forward, backend=self.backend, mode=self.mode, dynamic=False) if repeated else None

        network, shapes = shallow_copy(unet, compiled), set[torch.Size]()

        def call(x: Tensor, t: Tensor, cond: Conditioning, **more: Sequence[Tensor] | None) -> Tensor:
            start, new = time.monotonic(), x.shape not in shapes
            with torch._dynamo.config.patch(recompile_limit=MAX_COMPILED_SHAPES):
                y = network(x, t, cond, **more)
            if new:
                shapes.add(x.shape)
                log.warning("torch.compile: the first call of the UNet for %s took %.1f s.", _shape(x), time.monotonic() - start)
            return y

        return call


@dataclass(frozen=True)
class OpenVINO:
    """Static graphs of OpenVINO, for each set of shapes one, with a copy of all weights; in float32 and bfloat16 on a CPU.

    cache: folder where compiled graphs are kept; None is the user's cache folder.
    """

    cache: Path | None = None
    _networks: "WeakKeyDictionary[UNet, _Graphs]" = field(default_factory=WeakKeyDictionary, init=False, repr=False, compare=False)
    name: ClassVar[str] = "openvino"

    def __call__(self, model: LatentDiffusion) -> LatentDiffusion:
        self.check(model.device)
        return with_engine(model, self)

    def check(self, device: torch.device) -> None:
        """Raise DaguerreError if it is not installed, or for a device other than the CPU."""
        if find_spec("openvino") is None:
            raise DaguerreError("The engine openvino is not installed; install it with `pip install 'daguerre[openvino]'`.")
        if device.type != "cpu":
            raise DaguerreError(f"The engine openvino computes on the CPU, not on {device}; use --device cpu or --engine compile.")

    def prepare(self, unet: UNet, *, low_memory: bool = False) -> UNetCall:
        reason, dtype = changed_for_a_run(unet), unet.conv_norm_out.weight.dtype
        if dtype not in PRECISIONS:
            reason = f"it does not compute in {str(dtype).removeprefix('torch.')}"
        if unet.config.scale_shift:
            reason = "OpenVINO crashes on norms whose scale and shift depend on the time"  # found with version 2026.4.1
        if reason is not None:
            return _default(self.name, reason, unet, low_memory)
        weights = _weights_state(unet)
        graphs = self._networks.get(unet)
        if graphs is None or graphs.state != weights:  # a compiled graph does not see that weights have changed
            graphs = self._networks[unet] = _Graphs(weights, self.cache or graph_folder())
        default = prepack(unet, copies=not low_memory)

        def call(
            x: Tensor, t: Tensor, cond: Conditioning, *, control: Sequence[Tensor] | None = None, features: Sequence[Tensor] = ()
        ) -> Tensor:
            signature, tensors = flatten(x, t, cond, control, features)
            graph = graphs.get(unet, signature, tensors)
            return default(x, t, cond, control=control, features=features) if graph is None else graph(tensors).to(x.dtype)

        return call


@dataclass
class _Graphs:
    """The graphs of one network, the latest last; None for those that do not convert.

    state: of the weights that they hold.
    """

    state: object
    folder: Path
    by_signature: OrderedDict[Signature, Graph | None] = field(default_factory=OrderedDict)
    weights: str | None = None  # their hash

    def get(self, unet: UNet, signature: Signature, tensors: Sequence[Tensor]) -> Graph | None:
        if signature not in self.by_signature:
            while len(self.by_signature) >= GRAPHS_IN_MEMORY:
                self.by_signature.popitem(last=False)
            self.by_signature[signature] = self._opened(unet, signature, tensors)
        self.by_signature.move_to_end(signature)
        return self.by_signature[signature]

    def _opened(self, unet: UNet, signature: Signature, tensors: Sequence[Tensor]) -> Graph | None:
        """The graph from the disk, else compiled."""
        start = time.monotonic()
        with loaded(unet):
            self.weights = self.weights or network_hash(unet)
            key = graph_key(self.weights, unet, signature)
            compiled = read_graph(self.folder, key, signature)
            if compiled is None:
                try:
                    compiled = compile_graph(unet, signature, tensors)
                except Exception as error:  # of many kinds, by an operation that OpenVINO cannot convert or a lack of memory
                    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
                    log.warning("OpenVINO cannot convert this UNet (%s); the default engine computes it.", first_line)
                    return None
                seconds, kept = time.monotonic() - start, write_graph(self.folder, key, compiled)
                log.warning("OpenVINO compiled the UNet for %s in %.1f s; %s.", _shape(tensors[0]), seconds, kept)
        return runner(compiled)


def changed_for_a_run(unet: UNet) -> str | None:
    """Why a UNet whose layers are changed for one run needs the default engine; None if they are not changed."""
    for module in unet.modules():
        if isinstance(module, Attention) and type(module) not in (Attention, AttentionBlock):
            return "an IP-Adapter changes the attention"
        if "attend" in vars(module):
            return "the attention is recorded"
        if "forward" in vars(module):
            return "the images tile seamlessly"
    return None


def _default(engine: str, reason: str, unet: UNet, low_memory: bool) -> UNetCall:
    log.warning("The engine %s does not do this run, because %s; the default engine does.", engine, reason)
    return Torch().prepare(unet, low_memory=low_memory)


def _weights_state(unet: UNet) -> object:
    """Differs after any change of a weight; not of one that is offloaded, whose values come from a file."""
    return [(each.data_ptr(), 0 if each.is_inference() else each._version, each.dtype) for each in unet.parameters()]


def _shape(x: Tensor) -> str:
    return f"{'×'.join(map(str, x.shape))} in {str(x.dtype).removeprefix('torch.')}"
