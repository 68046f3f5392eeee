"""A checkpoint of Stable Diffusion 1.5's size, side by side with diffusers: opening, one call of the UNet, decoding; time and peak memory.

    python -m benchmarks.random_models FOLDER
    python -m benchmarks.checkpoints FOLDER [--rows unet-bfloat16 vae512-bfloat16 …] [--rivals compiled openvino] [--rounds 3] [--out …]

Every figure is of a process of its own; the programs take turns and medians are taken. Times are processor time, which other programs
disturb least; set OMP_NUM_THREADS=1, as waiting threads count. `--clock wall` tells what a person waits, with all threads of an idle
machine; our threads wait as the commands let them. "Opening" ends with the first answer of the UNet (batch 2, 64×64 latents),
imports left out; "from `python` to the first answer" is the same with the start of Python and all imports, as a person waits for it. Ours
opens as the commands open a large model: its parts take turns, so that the UNet alone is read when it is called; diffusers reads all, or
the autoencoder alone where that is measured.
"One call" is the next one, told the same, so ours knows the keys and values of the text as it does in a run. Memory is the process' peak,
imports and all.

The rivals are there for the UNet's call alone, and what they need before the first one is not counted: `compiled` is diffusers' UNet under
torch.compile with its weights frozen, which needs a C++ compiler; `openvino` is diffusers' UNet converted for the package of that name.
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

from benchmarks.measuring import age, in_a_process, noise, peak, row
from daguerre.cli.main import SPINS
from daguerre.runtime.allocator import tune_malloc
from daguerre.runtime.dtype import has_native_bfloat16

WHO = "daguerre", "diffusers"
RIVALS = {"compiled": "diffusers compiled", "openvino": "OpenVINO"}
ROWS = [f"{what}-{dtype}" for dtype in ("bfloat16", "float32") for what in ("unet", "vae512", "vae1024")]
AIMS = {"open": ("≤ 0.6 ×", "≤ 0.7 ×"), "unet": ("≤ 0.87 ×", ""), "vae": ("≤ 0.87 ×", "≤ 0.6 ×")}
Call = Callable[[], Tensor]


def unet(who: str, folder: Path, dtype: torch.dtype) -> Iterator[Call]:
    """Yields nothing until imports are done, then what opens the network and calls it."""
    x, context, t = noise(2, 4, 64, 64, dtype=dtype), noise(2, 77, 768, dtype=dtype), torch.full((2,), 500)
    if who == "daguerre":
        from daguerre.diffusion import Conditioning
        from daguerre.nn.cpu.prepack import prepack
        from daguerre.weights import load_diffusion

        yield lambda: torch.empty(0)
        network = prepack(load_diffusion(folder, dtype=dtype, offload=True).unet)  # what every run makes of it
        yield lambda: network(x, t, Conditioning(context=context))
        return
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    yield lambda: torch.empty(0)
    if who == "diffusers":
        pipe: Any = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
        yield lambda: pipe.unet(x, t, context).sample
        return
    kept = torch.float32 if who == "openvino" else dtype  # it traces float32; what it computes in is told when it compiles
    theirs: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=kept)
    if who == "compiled":
        import torch._inductor.config as inductor

        inductor.freezing = True  # pyright: ignore[reportAttributeAccessIssue]
        compiled = torch.compile(theirs)
        yield lambda: compiled(x, t, context).sample
    else:
        yield in_openvino(theirs, (x.float(), t, context.float()), "bf16" if dtype == torch.bfloat16 else "f32")


def in_openvino(network: torch.nn.Module, inputs: tuple[Tensor, ...], precision: str) -> Call:
    """A network converted and compiled by OpenVINO for these inputs, on as many threads as torch has."""
    import openvino  # pyright: ignore[reportMissingImports] # an extra of this benchmark alone

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
        if dtype == torch.float32:  # as a run decodes
            autoencoder = prepack(autoencoder, copies=False)
        yield lambda: autoencoder.decode(z)
    else:
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        yield lambda: torch.empty(0)
        theirs: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype)
        yield lambda: theirs.decode(z / theirs.config.scaling_factor).sample


@torch.no_grad()
def measured(who: str, what: str, folder: Path, clock: str) -> dict[str, float]:
    """Seconds of opening with the first call, of the process until then and of the next call; peak memory in GB."""
    now = time.process_time if clock == "processor" else age
    what, name = what.split("-")
    dtype = getattr(torch, name)
    calls = unet(who, folder, dtype) if what == "unet" else vae(who, folder, dtype, int(what.removeprefix("vae")))
    if who == "daguerre":
        tune_malloc()  # as the commands do
    next(calls)
    start = now()
    call = next(calls)
    if what == "unet":  # else the decoder's first call is as long as any other
        call()
    first = now()
    call()
    return {"open": first - start, "process": first, "call": now() - first, "peak": peak()}


def compared(what: str, folder: Path, rounds: int, rivals: Sequence[str], clock: str) -> list[tuple[object, ...]]:
    """The table's rows of one network in one dtype: what, ours, theirs, ratio, aim, and of each rival the time of a call."""
    name, dtype = what.split("-")
    environment = {"daguerre": {"GOMP_SPINCOUNT": SPINS}}  # as the commands set it
    one = "--clock", clock, "--one"
    asked = [*WHO, *(rivals if name == "unet" else ())]
    found: dict[str, list[dict[str, float]]] = {who: [] for who in asked}
    for _ in range(rounds):
        for who in asked:
            found[who].append(in_a_process("benchmarks.checkpoints", folder, *one, who, what, **environment.get(who, {})))
    medians = {who: {key: statistics.median(each[key] for each in of) for key in of[0]} for who, of in found.items()}

    def line(text: str, key: str, aim: str, beside: Sequence[object] = ("",) * len(rivals)) -> tuple[object, ...]:
        ours, theirs = (medians[who][key] for who in WHO)
        return (text, ours, theirs, f"{ours / theirs:.2f}", aim, *beside)

    if name == "unet":
        return [
            line(f"open the folder, through the first UNet call, {dtype}, s", "open", *AIMS["open"][:1]),
            line(f"from `python` to the first answer, all imports included, {dtype}, s", "process", ""),
            line(f"the same, peak memory, {dtype}, GB", "peak", AIMS["open"][1]),
            line(f"one UNet call, batch 2, 64×64, {dtype}, s", "call", AIMS["unet"][0], [medians[who]["call"] for who in rivals]),
        ]
    side = name.removeprefix("vae")
    return [
        line(f"decode {side}×{side}, {dtype}, s", "call", AIMS["vae"][0]),
        line(f"the same with opening, peak memory, {dtype}, GB", "peak", AIMS["vae"][1]),
    ]


def there(rivals: Sequence[str]) -> list[str]:
    """The rivals that can be measured here; says which cannot."""
    needs = {
        "compiled": (shutil.which("c++") is not None, "a C++ compiler"),
        "openvino": (find_spec("openvino") is not None, "`pip install openvino`"),
    }
    for who in rivals:
        if not needs[who][0]:
            print(f"{RIVALS[who]} is left out: it needs {needs[who][1]}.")
    return [who for who in rivals if needs[who][0]]


def native() -> list[str]:
    """The rows in dtypes that this processor has instructions for, without which one takes seven times as long; says what it leaves out."""
    if has_native_bfloat16():
        return ROWS
    print("bfloat16 is left out: this processor has no instructions for it.")
    return [each for each in ROWS if each.endswith("float32")]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="*", choices=ROWS, help="by default all that this processor multiplies natively")
    parser.add_argument("--rivals", nargs="*", choices=RIVALS, default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=("processor", "wall"), default="processor")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/checkpoints.md"))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], options.one[1], options.folder, options.clock)))
        return
    rows, rivals = options.rows or native(), there(options.rivals)
    where = f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"
    given = f"--rows {' '.join(rows)}{' --rivals ' * bool(rivals)}{' '.join(rivals)} --rounds {options.rounds}"
    given += " --clock wall" * (options.clock == "wall")
    heads = "what", *WHO, "ratio", "aim", *(RIVALS[who] for who in rivals)
    lines = [
        "# A checkpoint of Stable Diffusion 1.5's size, measured",
        "",
        f"`python -m benchmarks.checkpoints FOLDER {given}`, medians; {where}.",
    ]
    lines += ["", row(heads), row("---" for _ in heads)]
    for each in rows:
        for cells in compared(each, options.folder, options.rounds, rivals, options.clock):
            lines.append(row(cells))
            print(lines[-1], flush=True)
        options.out.write_text("\n".join(lines) + "\n")  # what is known so far


if __name__ == "__main__":
    main()
