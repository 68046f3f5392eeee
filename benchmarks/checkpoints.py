"""A checkpoint of Stable Diffusion 1.5's size, compared with diffusers: loading, one UNet call, decoding; time and peak memory.

    python -m benchmarks.random_models FOLDER
    python -m benchmarks.checkpoints FOLDER [--rows unet-bfloat16 vae512-bfloat16 …] [--engines compiled openvino] [--rounds 3] [--out …]

Every figure comes from a separate process; the programs alternate, and medians are reported. Times are CPU time, which other programs
affect least; set OMP_NUM_THREADS=1, because waiting threads count. `--clock wall` measures wall-clock time with all threads of an idle
machine. "Load" ends with the first result of the UNet (batch 2, 64×64 latents), without imports; "from `python` to the first result"
includes the start of Python and all imports. Daguerre loads as its commands load a large model: with sequential offload, so that a UNet
call reads only the UNet. diffusers reads all parts, or only the autoencoder if that is measured. "One call" is the next call with the same
prompt, so Daguerre reuses the text keys and values as in a run. Memory is the peak of the process, including imports.

The other engines run only the UNet call, and their preparation is not counted: `compiled` is diffusers' UNet under torch.compile with
frozen weights, which needs a C++ compiler; `openvino` is diffusers' UNet converted with the package of that name.
"""

import argparse
import json
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.processes import age, in_a_process, noise, peak, row
from daguerre.cpu_threads import SPIN_COUNT
from daguerre.runtime.allocator import tune_malloc
from daguerre.runtime.dtype import has_native_bfloat16

WHO = "daguerre", "diffusers"
ENGINES = {"compiled": "diffusers compiled", "openvino": "OpenVINO"}
ROWS = [f"{what}-{dtype}" for dtype in ("bfloat16", "float32") for what in ("unet", "vae512", "vae1024")]
AIMS = {"open": ("≤ 0.6 ×", "≤ 0.7 ×"), "unet": ("≤ 0.87 ×", ""), "vae": ("≤ 0.87 ×", "≤ 0.6 ×")}
Call = Callable[[], Tensor]


def unet(who: str, folder: Path, dtype: torch.dtype) -> Iterator[Call]:
    """Yields a no-op after the imports, then a function that calls the loaded network."""
    x, context, t = noise(2, 4, 64, 64, dtype=dtype), noise(2, 77, 768, dtype=dtype), torch.full((2,), 500)
    if who == "daguerre":
        from daguerre.diffusion import Conditioning
        from daguerre.nn.cpu.prepack import prepack
        from daguerre.weights import load_diffusion

        yield lambda: torch.empty(0)
        network = prepack(load_diffusion(folder, dtype=dtype, offload=True).unet)  # as in every run
        yield lambda: network(x, t, Conditioning(context=context))
        return
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    yield lambda: torch.empty(0)
    if who == "diffusers":
        pipe: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
        yield lambda: pipe.unet(x, t, context).sample
        return
    stored = torch.float32 if who == "openvino" else dtype  # OpenVINO traces float32; its compute precision is a compile option
    network: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=stored)
    if who == "compiled":
        import torch._inductor.config as inductor

        inductor.freezing = True  # pyright: ignore[reportAttributeAccessIssue]
        compiled = torch.compile(network)
        yield lambda: compiled(x, t, context).sample
    else:
        yield in_openvino(network, (x.float(), t, context.float()), "bf16" if dtype == torch.bfloat16 else "f32")


def in_openvino(network: torch.nn.Module, inputs: tuple[Tensor, ...], precision: str) -> Call:
    """A network converted and compiled by OpenVINO for these inputs, with as many threads as torch."""
    import openvino  # pyright: ignore[reportMissingImports] # only this benchmark needs it

    shapes = [(list(each.shape), openvino.Type.i64 if each.dtype == torch.int64 else openvino.Type.f32) for each in inputs]
    model = openvino.convert_model(network, example_input=inputs, input=shapes)
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(model, "CPU", hints)
    return lambda: torch.from_numpy(compiled([each.numpy() for each in inputs])[0])


def vae(who: str, folder: Path, dtype: torch.dtype, side: int) -> Iterator[Call]:
    z = noise(1, 4, side // 8, side // 8, dtype=dtype)
    if who == "daguerre":
        from daguerre.nn.cpu.prepack import prepack
        from daguerre.weights import load_diffusion

        yield lambda: torch.empty(0)
        autoencoder: Any = load_diffusion(folder, dtype=dtype, offload=True).autoencoder
        if dtype == torch.float32:  # as in a run
            autoencoder = prepack(autoencoder, copies=False)
        yield lambda: autoencoder.decode(z)
    else:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        yield lambda: torch.empty(0)
        theirs: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        yield lambda: theirs.decode(z / theirs.config.scaling_factor).sample


@torch.no_grad()
def measured(who: str, what: str, folder: Path, clock: str) -> dict[str, float]:
    """Seconds of loading with the first call, of the process until then, and of the next call; peak memory in GB."""
    now = time.process_time if clock == "processor" else age
    what, name = what.split("-")
    dtype = getattr(torch, name)
    calls = unet(who, folder, dtype) if what == "unet" else vae(who, folder, dtype, int(what.removeprefix("vae")))
    if who == "daguerre":
        tune_malloc()  # as the commands do
    next(calls)
    start = now()
    call = next(calls)
    if what == "unet":  # the decoder's first call is like any other
        call()
    first = now()
    call()
    return {"open": first - start, "process": first, "call": now() - first, "peak": peak()}


def compared(what: str, folder: Path, rounds: int, engines: Sequence[str], clock: str) -> list[tuple[object, ...]]:
    """The table rows of one network and dtype: name, Daguerre, diffusers, ratio, aim, and the time of a call of each other engine."""
    name, dtype = what.split("-")
    environment = {"daguerre": {"GOMP_SPINCOUNT": SPIN_COUNT}}  # as the commands set it
    one = "--clock", clock, "--one"
    asked = [*WHO, *(engines if name == "unet" else ())]
    found: dict[str, list[dict[str, float]]] = {who: [] for who in asked}
    for _ in range(rounds):
        for who in asked:
            found[who].append(in_a_process("benchmarks.checkpoints", folder, *one, who, what, **environment.get(who, {})))
    medians = {who: {key: statistics.median(each[key] for each in of) for key in of[0]} for who, of in found.items()}

    def line(text: str, key: str, aim: str, others: Sequence[object] = ("",) * len(engines)) -> tuple[object, ...]:
        ours, theirs = (medians[who][key] for who in WHO)
        return (text, ours, theirs, f"{ours / theirs:.2f}", aim, *others)

    if name == "unet":
        return [
            line(f"load the folder, including the first UNet call, {dtype}, s", "open", *AIMS["open"][:1]),
            line(f"from `python` to the first result, including imports, {dtype}, s", "process", ""),
            line(f"the same, peak memory, {dtype}, GB", "peak", AIMS["open"][1]),
            line(f"one UNet call, batch 2, 64×64, {dtype}, s", "call", AIMS["unet"][0], [medians[who]["call"] for who in engines]),
        ]
    side = name.removeprefix("vae")
    return [
        line(f"decode {side}×{side}, {dtype}, s", "call", AIMS["vae"][0]),
        line(f"the same with loading, peak memory, {dtype}, GB", "peak", AIMS["vae"][1]),
    ]


def available(engines: Sequence[str]) -> list[str]:
    """The engines that are available here; prints the missing ones."""
    needs = {
        "compiled": (shutil.which("c++") is not None, "a C++ compiler"),
        "openvino": (find_spec("openvino") is not None, "`pip install openvino`"),
    }
    for who in engines:
        if not needs[who][0]:
            print(f"{ENGINES[who]} is left out: it needs {needs[who][1]}.")
    return [who for who in engines if needs[who][0]]


def native() -> list[str]:
    """The rows in dtypes that this CPU supports natively; prints what is left out. Others are about seven times slower."""
    if has_native_bfloat16():
        return ROWS
    print("bfloat16 is left out: this CPU has no instructions for it.")
    return [each for each in ROWS if each.endswith("float32")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="*", choices=ROWS, help="default: all that this CPU supports natively")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("processor", "wall"), default="processor")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/checkpoints.md"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], options.one[1], options.folder, options.clock)))
        return
    rows, engines = options.rows or native(), available(options.engines)
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    given = f"--rows {' '.join(rows)}{' --engines ' * bool(engines)}{' '.join(engines)} --rounds {options.rounds}"
    given += " --clock wall" * (options.clock == "wall")
    heads = "what", *WHO, "ratio", "aim", *(ENGINES[who] for who in engines)
    lines = [
        "# A checkpoint of Stable Diffusion 1.5's size",
        "",
        f"`python -m benchmarks.checkpoints FOLDER {given}`, medians; {where}.",
    ]
    lines += ["", row(heads), row("---" for _ in heads)]
    for each in rows:
        for cells in compared(each, options.folder, options.rounds, engines, options.clock):
            lines.append(row(cells))
            print(lines[-1], flush=True)
        options.out.write_text("\n".join(lines) + "\n")  # intermediate results


if __name__ == "__main__":
    main()
