"""A model distilled to few steps, next to its teacher: R-precision of known prompts, time, and a sheet of images.

    daguerre train lcm --out runs/lcm
    python -m benchmarks.few_step runs/lcm/lcm.safetensors [--prompts 100] [--out benchmarks/few_step.md] [--sheet few_step.webp]

R-precision is the share of known names that the embedded CLIP recognises first among all names in the image. Every row of the sheet has the
same prompts and seeds. Seconds are processor seconds for an image, including text and decoding.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.adapter_demos import recognised, sheet
from benchmarks.processes import row
from daguerre.adapters import load_lora, with_adapters
from daguerre.adapters.presets import STEP_PRESETS
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines import Request, generate
from daguerre.weights import load_diffusion

PROMPTS = (
    "a red apple",
    "a cat face",
    "a blue car",
    "a pizza to the left of a rocket",
    "a sunflower on a purple background",
    "a smiling face",
)
TEACHER_STEPS = 20
HEADS = "images", "R-precision (95 % interval)", "s per image"


def runs(path: Path) -> dict[str, tuple[LatentDiffusion, Request]]:
    """The rows: the teacher with its own guidance, at many steps and at few, and the student."""
    teacher = load_diffusion(None)
    student = with_adapters(teacher, [load_lora(path)])
    few = STEP_PRESETS["lcm"]
    return {
        f"teacher, {TEACHER_STEPS} steps": (teacher, Request(steps=TEACHER_STEPS)),
        f"teacher, {few.steps} steps": (teacher, Request(steps=few.steps)),
        f"student, {few.steps} steps": (student, Request(**few.fields)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", type=Path)
    parser.add_argument("--prompts", type=int, default=100, help="0 gives the sheet alone")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/few_step.md"))
    parser.add_argument("--sheet", type=Path, default=Path("few_step.webp"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, lines = {}, [row(HEADS), row("---" for _ in HEADS)]
    for name, (model, request) in runs(options.lora).items():
        start = time.process_time()
        images[name] = [generate(model, replace(request, prompt=prompt, seed=1))[0].image for prompt in PROMPTS]
        seconds = (time.process_time() - start) / len(PROMPTS)
        lines.append(row((name, recognised(model, options.prompts, replace(request, seed=0)) if options.prompts else "", seconds)))
        print(lines[-1], flush=True)
    sheet(images, PROMPTS, options.sheet)
    if options.prompts:
        options.out.write_text(
            f"# Few steps\n\n`python -m benchmarks.few_step LORA --prompts {options.prompts}`.\n\n" + "\n".join(lines) + "\n"
        )


if __name__ == "__main__":
    main()
