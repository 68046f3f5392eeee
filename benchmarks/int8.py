"""int8 on the embedded model against float32: torch's dynamic quantisation of linear layers, and OpenVINO's int8. PSNR and time.

    python -m benchmarks.int8 [--steps 20] [--out benchmarks/int8.md]

OpenVINO's rows need nncf (`pip install nncf`), which Daguerre does not. "int8 weights" computes in float32; "int8" also computes
convolutions and matrix products in int8, with ranges from runs with other prompts. Kept is what gives 1.5 times the speed at 35 dB or more.
Times are processor seconds of an image.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from benchmarks.processes import row
from daguerre.data.images import to_tensor
from daguerre.diffusion import Conditioning
from daguerre.metrics import psnr
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.unet import UNet
from daguerre.pipelines import generate
from daguerre.runtime.engines import OpenVINO, with_engine
from daguerre.runtime.openvino_graphs import flatten, runner, settings_of, trace_graph
from daguerre.runtime.weight_edits import with_edited_weights
from daguerre.weights import load_diffusion

PROMPTS = "a red apple", "a blue cat", "a pizza to the left of a tree", "a smiling face on a yellow background"
CALIBRATION = "a green car", "a dog face", "a rocket on a purple background"
AIM = "1.5 times the speed at 35 dB"


def dynamic(model: LatentDiffusion) -> LatentDiffusion:
    """The model with int8 weights and activations in the linear layers of its UNet."""
    unet = with_edited_weights(model.unet, {})
    quantised = torch.ao.quantization.quantize_dynamic(unet, {nn.Linear}, dtype=torch.qint8)
    return replace(model, unet=quantised)


@dataclass(frozen=True)
class Int8:
    """An engine: OpenVINO with a graph that `change` makes of the UNet's, for the shapes of the first call.

    change: (graph, inputs of all calls of the calibration) to another graph.
    """

    change: Callable[[Any, Sequence[Any]], Any]
    inputs: list[Any] = field(default_factory=list)
    graphs: dict[Any, Callable[..., Tensor]] = field(default_factory=dict)
    name: ClassVar[str] = "int8"

    def prepare(self, unet: UNet, *, low_memory: bool = False) -> Callable[..., Tensor]:
        """Until `graphs` has one, record the inputs."""

        def call(x: Tensor, t: Tensor, cond: Conditioning, **_: object) -> Tensor:
            signature, tensors = flatten(x, t, cond, None, ())
            if not self.graphs:
                self.inputs.append((signature, [each.numpy().copy() for each in tensors]))
                return unet(x, t, cond)
            return self.graphs[signature](tensors)

        return call

    def calibrated(self, model: LatentDiffusion, steps: int) -> LatentDiffusion:
        """The model with this engine, whose graph is made from the runs of the calibration."""
        import openvino

        changed = with_engine(model, self)
        for prompt in CALIBRATION:
            generate(changed, prompt, steps=steps)
        signature, tensors = self.inputs[0]
        graph = trace_graph(model.unet, signature, [torch.from_numpy(each) for each in tensors])
        graph = self.change(graph, [each for _, each in self.inputs])
        self.graphs[signature] = runner(openvino.Core().compile_model(graph, "CPU", settings_of(signature)))
        return changed


def quantised_weights(graph: Any, inputs: Sequence[Any]) -> Any:
    import nncf  # pyright: ignore[reportMissingImports]  # only here

    return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)


def quantised(graph: Any, inputs: Sequence[Any]) -> Any:
    import nncf  # pyright: ignore[reportMissingImports]  # only here

    kind = nncf.ModelType.TRANSFORMER
    return nncf.quantize(graph, nncf.Dataset(inputs), subset_size=len(inputs), model_type=kind, fast_bias_correction=True)


def sampled(model: LatentDiffusion, steps: int) -> tuple[list[torch.Tensor], float]:
    """The images (1, 3, H, W) of the prompts and the median of the processor seconds that each took."""
    images, seconds = [], []
    for prompt in PROMPTS:
        start = time.process_time()
        images.append(to_tensor(generate(model, prompt, steps=steps)[0].image)[None])
        seconds.append(time.process_time() - start)
    return images, statistics.median(seconds)


def models(base: LatentDiffusion, steps: int) -> dict[str, LatentDiffusion]:
    """The rows after the first."""
    found = {"torch, dynamic, linear layers": dynamic(base)}
    if find_spec("openvino") is not None:
        found["OpenVINO, float32"] = OpenVINO()(base)
    if find_spec("nncf") is not None:
        found["OpenVINO, int8 weights"] = Int8(quantised_weights).calibrated(base, 1)
        found["OpenVINO, int8"] = Int8(quantised).calibrated(base, steps)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/int8.md"))
    options = parser.parse_args()
    model = load_diffusion(None, dtype=torch.float32)
    truth, base = sampled(model, options.steps)
    heads = "UNet", "PSNR to float32, dB", "s per image", "speed"
    lines = [
        "# int8",
        "",
        f"`python -m benchmarks.int8 --steps {options.steps}`: the embedded model, {len(PROMPTS)} prompts, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}. The aim is {AIM}.",
        "",
        row(heads),
        row("---" for _ in heads),
        row(("float32", "", base, "")),
    ]
    for name, changed in models(model, options.steps).items():
        images, seconds = sampled(changed, options.steps)
        value = statistics.mean(psnr(x, y).item() for x, y in zip(truth, images, strict=True))
        lines.append(row((name, value, seconds, f"{base / seconds:.2f} ×")))
        print(lines[-1], flush=True)
    options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
