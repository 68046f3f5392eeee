"""Generating images with the embedded model and training it, compared with diffusers on the same exported model.

    python -m benchmarks.embedded_model [--model FOLDER] [--runs 5] [--out benchmarks/embedded_model.md]

Every figure is a median over `--runs` runs after a warm-up; the two programs alternate, so that changes in machine speed affect both.
Between cold runs only the operating system caches files. All times are CPU seconds summed over threads, which other programs hardly
affect; with OMP_NUM_THREADS=1 they equal wall-clock time on an idle machine.
"""

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import daguerre
from daguerre.data import Batch
from daguerre.models.unet import UNet
from daguerre.training.batch_random import BatchRandom
from daguerre.training.objectives.diffusion import DiffusionLoss, DiffusionTask
from daguerre.weights import load_diffusion
from daguerre.weights.catalog import find

STEPS, GUIDANCE, BATCH = 20, 5.0, 32
TRAINING_STEPS = 4


def timed(*tasks: Callable[[], object], runs: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """The median seconds of each task after a warm-up; the tasks alternate."""
    seconds: list[list[float]] = [[] for _ in tasks]
    for run in range(runs + 1):
        for task, times in zip(tasks, seconds, strict=True):
            start = clock()
            task()
            if run:
                times.append(clock() - start)
    return [statistics.median(times) for times in seconds]


def cpu_seconds() -> float:
    """CPU seconds of this process and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def command(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "daguerre", *arguments], check=True, capture_output=True)


def diffusers_command(folder: Path, out: Path) -> None:
    """The shortest program that generates the same image with diffusers."""
    program = (
        "from diffusers import StableDiffusionPipeline as P, DPMSolverMultistepScheduler as S\n"
        f"p = P.from_pretrained({str(folder)!r}); p.set_progress_bar_config(disable=True)\n"
        "p.scheduler = S.from_config(p.scheduler.config)\n"
        f"p('a red apple', num_inference_steps={STEPS}, guidance_scale={GUIDANCE}).images[0].save({str(out)!r})\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def cold(folder: Path, runs: int) -> list[tuple[str, float, float | None, str]]:
    with tempfile.TemporaryDirectory() as scratch:
        ours, theirs = timed(
            lambda: command("txt2img", "a red apple", "--model", str(folder), "--out", f"{scratch}/a.png"),
            lambda: diffusers_command(folder, Path(scratch) / "b.png"),
            runs=runs,
            clock=cpu_seconds,
        )
    (help_,) = timed(lambda: command("--help"), runs=runs, clock=cpu_seconds)
    return [
        ('`txt2img "a red apple"`, cold process to saved PNG, s', ours, theirs, "≤ 6 s"),
        ("`--help`, s", help_, None, "≤ 0.4 s"),
    ]


def warm(folder: Path, runs: int) -> list[tuple[str, float, float | None, str]]:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    rows: list[tuple[str, float, float | None, str]] = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load_diffusion(folder, dtype=dtype)
        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        size = model.sample_size
        for count in (1, 8):
            ours, theirs = timed(
                lambda model=model, count=count: daguerre.generate(
                    model,
                    prompt="a red apple",
                    steps=STEPS,
                    guidance_scale=GUIDANCE,
                    sampler="dpmpp_2m",
                    spacing="trailing",
                    num_images=count,
                ),
                lambda pipe=pipe, count=count, size=size: pipe(
                    "a red apple", num_inference_steps=STEPS, guidance_scale=GUIDANCE, num_images_per_prompt=count, height=size, width=size
                ),
                runs=runs,
                clock=cpu_seconds,
            )
            rows.append((f"warm, {STEPS} steps, {count} image(s), {str(dtype)[6:]}, s", ours, theirs, "≤ 0.8 ×"))
    return rows


def training(folder: Path, runs: int) -> list[tuple[str, float, float | None, str]]:
    """Images a second of one optimiser step: frozen parts, UNet forward and backward, AdamW; bf16 autocast, the embedded sizes.

    The plain loop is the usual one: encode, embed, add noise, predict, step. Ours reads cached latents and drops captions besides.
    """
    from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    model = load_diffusion(folder)
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    x = torch.rand(BATCH, 3, model.sample_size, model.sample_size) * 2 - 1
    captions = [f"a red apple on a {colour} background" for colour in ("green", "blue")] * (BATCH // 2)
    with torch.no_grad():
        z = model.autoencoder.encode(x)
    stage = DiffusionTask(replace(model, unet=UNet(model.unet.config)), DiffusionLoss(), model.conditioner.encode_captions, captions[:1])
    our_optimizer = torch.optim.AdamW(stage.networks["unet"].parameters(), lr=1e-4, fused=True)
    random = BatchRandom(torch.Generator().manual_seed(0), len(captions))

    def ours() -> None:
        for _ in range(TRAINING_STEPS):
            with torch.autocast("cpu", torch.bfloat16):
                ((_, loss, _),) = stage.losses(Batch(z, captions, latent=True), stage.networks, random, step=0)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(stage.networks["unet"].parameters(), 1.0)
            our_optimizer.step()
            our_optimizer.zero_grad()

    unet = UNet2DConditionModel.from_config(pipe.unet.config).train()
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)

    def theirs(encode: bool = True) -> None:
        for _ in range(TRAINING_STEPS):
            with torch.autocast("cpu", torch.bfloat16):
                with torch.no_grad():
                    latent = pipe.vae.encode(x).latent_dist.sample() * pipe.vae.config.scaling_factor if encode else z
                    ids = pipe.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
                    states = pipe.text_encoder(ids)[0]
                eps = torch.randn_like(latent)
                t = torch.randint(1000, (BATCH,))
                predicted = unet(scheduler.add_noise(latent, eps, t), t, states).sample
                loss = torch.nn.functional.mse_loss(predicted.float(), scheduler.get_velocity(latent, eps, t).float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    a, b, c = timed(ours, theirs, lambda: theirs(encode=False), runs=max(1, runs // 2), clock=cpu_seconds)
    images = TRAINING_STEPS * BATCH
    return [
        (f"training, batch {BATCH}, bf16, images/s, against the usual loop", images / a, images / b, "≥ 1.2 ×"),
        ("the same, against a loop with the same cached latents", images / a, images / c, "≥ 1.2 ×"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=None, help="a model folder; none: the embedded one")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/embedded_model.md"))
    options = parser.parse_args()
    folder = find(options.model)
    rows = [*cold(folder, options.runs), *warm(folder, options.runs), *training(folder, options.runs)]
    lines = ["| what | daguerre | diffusers | ratio | aim |", "|---|---|---|---|---|"]
    for what, ours, theirs, aim in rows:
        beside = " | " if theirs is None else f"{theirs:.3g} | {ours / theirs:.2f}"
        lines.append(f"| {what} | {ours:.3g} | {beside} | {aim} |")
    table = "\n".join(lines)
    print(table)
    threads = f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, Python {platform.python_version()}"
    about = f"`python -m benchmarks.embedded_model`, medians of {options.runs} runs; seconds of the processor; {threads}."
    options.out.write_text(f"# The road, measured\n\n{about}\n\n{table}\n")


if __name__ == "__main__":
    main()
