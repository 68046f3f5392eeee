"""A UNet as a static graph of OpenVINO, kept on the disk.

The network is traced, its shapes are fixed, and OpenVINO compiles it for this processor. A graph holds a copy of all weights and knows one
set of shapes, so it is found again by the hash of everything that it was made from. A folder of the cache holds the compiled graph and a
JSON file with that hash and the SHA-256 of the graph: a damaged graph could end the process.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daguerre.atomic_io import atomic_path
from daguerre.diffusion.conditioning import FIELDS, Conditioning
from daguerre.errors import DaguerreError
from daguerre.models.unet import UNet
from daguerre.nn.attention import Attention
from daguerre.nn.cpu.prepack import shallow_copy

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}
MAX_CACHE_BYTES = 8 << 30  # of all graphs on the disk; the oldest ones are removed
GRAPH, ABOUT = "graph.blob", "graph.json"
Graph = Callable[[Sequence[Tensor]], Tensor]  # the inputs of `flatten` to the prediction in float32

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Signature:
    """Which inputs a UNet is given, and their shapes: one static graph answers all calls with the same.

    shapes: of x, t, the fields of the conditioning, the residuals of ControlNets and the features of T2I-Adapters, in this order.
    """

    fields: tuple[str, ...]
    num_conditions: int
    controls: int
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype


def flatten(
    x: Tensor, t: Tensor, cond: Conditioning, control: Sequence[Tensor] | None, features: Sequence[Tensor]
) -> tuple[Signature, list[Tensor]]:
    """The arguments of a call of a UNet as a signature and a list of tensors."""
    given = {name: tensor for name in FIELDS if (tensor := getattr(cond, name)) is not None}
    tensors = [x, t.expand(len(x)), *given.values(), *(control or ()), *features]
    shapes = tuple(tuple(tensor.shape) for tensor in tensors)
    return Signature(tuple(given), cond.num_conditions, len(control or ()), shapes, x.dtype), [_plain(tensor) for tensor in tensors]


def _plain(tensor: Tensor) -> Tensor:
    return (tensor.float() if tensor.is_floating_point() else tensor).contiguous()


class _FlatUNet(nn.Module):
    """A UNet with the arguments of `flatten`, to be traced."""

    def __init__(self, unet: UNet, signature: Signature) -> None:
        super().__init__()
        self.unet, self.signature = unet, signature

    def forward(self, *tensors: Tensor) -> Tensor:
        x, t, *rest = tensors
        count, controls = len(self.signature.fields), self.signature.controls
        fields: dict[str, Any] = dict(zip(self.signature.fields, rest[:count], strict=True))
        cond = Conditioning(**fields, num_conditions=self.signature.num_conditions)
        return self.unet(x, t, cond, control=rest[count:][:controls] or None, features=rest[count + controls :])


def _traceable(unet: UNet) -> UNet:
    """A copy in float32 whose attention is one operation."""

    def prepare(module: nn.Module) -> None:
        module._forward_pre_hooks = OrderedDict()
        module._parameters = {
            name: weight if weight is None else nn.Parameter(weight.detach().float(), requires_grad=False)
            for name, weight in module._parameters.items()
        }
        if isinstance(module, Attention):
            module.attend = F.scaled_dot_product_attention

    return shallow_copy(unet, prepare).eval()


def compile_graph(unet: UNet, signature: Signature, tensors: Sequence[Tensor]) -> Any:
    """Trace and compile a UNet whose weights are in memory, for the shapes of `tensors`."""
    return _openvino().Core().compile_model(trace_graph(unet, signature, tensors), "CPU", settings_of(signature))


@torch.no_grad()
def trace_graph(unet: UNet, signature: Signature, tensors: Sequence[Tensor]) -> Any:
    """A UNet as a model of OpenVINO with the shapes of `tensors`."""
    openvino = _openvino()
    with warnings.catch_warnings(), _log_level_kept():
        warnings.simplefilter("ignore")  # the tracer notes every shape that it fixes, which is what is wanted here
        graph = openvino.convert_model(_FlatUNet(_traceable(unet), signature), example_input=tuple(tensors))
    graph.reshape({number: list(shape) for number, shape in enumerate(signature.shapes)})
    return graph


@contextmanager
def _log_level_kept() -> Iterator[None]:
    """A conversion that fails would leave the root logger silent."""
    root = logging.getLogger()
    level, filters, handlers = root.level, [*root.filters], [*root.handlers]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters, root.handlers = filters, handlers


def runner(compiled: Any) -> Graph:
    """The function that computes a compiled graph."""
    request = compiled.create_infer_request()
    return lambda tensors: torch.from_numpy(request.infer([tensor.numpy() for tensor in tensors], share_inputs=True)[0])


def graph_key(weights: str, unet: UNet, signature: Signature) -> str:
    """The hash of everything that a compiled graph depends on: weights, code, shapes, threads, OpenVINO and the processor."""
    openvino = _openvino()
    core, modules = openvino.Core(), {type(module).__module__ for module in unet.modules()}
    sources = [Path(str(sys.modules[name].__file__)) for name in sorted(modules) if name.startswith("daguerre.")]
    parts = [weights, repr(unet.config), repr(signature), repr(settings_of(signature)), openvino.__version__, torch.__version__]
    parts += [str(core.get_property("CPU", name)) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    parts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in (*sources, Path(__file__))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def read_graph(folder: Path, key: str, signature: Signature) -> Any | None:
    """The compiled graph of a key; None if there is none, or if it is damaged, which a line says."""
    path = folder / key
    if not path.is_dir():
        return None
    try:
        about = json.loads((path / ABOUT).read_text())
        blob = (path / GRAPH).read_bytes()
        if about != {"key": key, "sha256": hashlib.sha256(blob).hexdigest()}:
            raise ValueError("its checksum differs")
        compiled = _openvino().Core().import_model(blob, "CPU", settings_of(signature))
        os.utime(path)  # so that it counts as new
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log.warning("The compiled graph '%s' is damaged or of another version (%s); it is compiled again.", path, reason[0])
        return None
    return compiled


def write_graph(folder: Path, key: str, compiled: Any) -> str:
    """Keep a compiled graph; returns what became of it, for a message."""
    path = folder / key
    try:
        with atomic_path(path) as temporary:
            temporary.mkdir()
            blob = compiled.export_model().getbuffer()
            (temporary / GRAPH).write_bytes(blob)
            (temporary / ABOUT).write_text(json.dumps({"key": key, "sha256": hashlib.sha256(blob).hexdigest()}))
        _remove_oldest(folder, path)
    except (OSError, DaguerreError) as error:
        return f"it is not kept for the next time: {error}"
    return f"kept in '{path}' for the next time"


def _remove_oldest(folder: Path, newest: Path) -> None:
    """Remove the graphs used longest ago until the others take less than MAX_CACHE_BYTES; the newest always stays."""
    total = 0
    for path in sorted((each for each in folder.iterdir() if (each / ABOUT).is_file()), key=lambda each: -each.stat().st_mtime):
        total += (path / GRAPH).stat().st_size
        if total > MAX_CACHE_BYTES and path != newest:
            shutil.rmtree(path, ignore_errors=True)


def graph_folder() -> Path:
    """Where compiled graphs are kept (XDG base directory specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "daguerre" / "openvino"


def settings_of(signature: Signature) -> dict[str, Any]:
    """How to compile. OpenVINO would compute in bfloat16 on any processor that can, whatever the dtype of the model."""
    precision = PRECISIONS[signature.dtype]
    return {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}


def _openvino() -> Any:
    """The package, without the one that sends usage statistics."""
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]  # its import then fails, as if not installed
    import openvino

    return openvino
