"""Measure the shipped generations for `daguerre lineage`, and write `src/daguerre/assets/lineage.json`.

    python -m benchmarks.lineage [--seeds 4] [--only vqgan]

For every generation: PSNR of its reconstructions of the 32 faces; Fréchet distance of its samples to true renders of the same faces, on
the features of the embedded CLIP; diversity, the mean of 1 − cosine of these features between samples of one condition with different
seeds; how often the CLIP ranks the name of the condition first among the 32; the peak memory of a process that loads the model and
generates one image, above that of the process before. `--seeds` samples of each condition; of generations without conditions as many at
random. What each training took is kept from the file.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.data import BatchLoader
from daguerre.data.catalog import open_dataset
from daguerre.data.emoji.faces import FACES
from daguerre.evaluation.clip_scorer import load_clip_scorer
from daguerre.evaluation.lineage.cells import open_generation, reconstructions, render_faces, sample_prompts, side_of
from daguerre.evaluation.lineage.generations import GENERATIONS, Generation
from daguerre.evaluation.lineage.sheet import MEASURED
from daguerre.metrics import cosine, frechet_distance, psnr, ranks, recall_at


def measure(generation: Generation, seeds: int) -> dict[str, Any]:
    """The figures of one generation, without its training."""
    model, clip, found = open_generation(generation, str(generation.folder(None))), load_clip_scorer(), {}
    true = render_faces(side_of(model), FACES)
    if "reconstruct" not in generation.missing:
        found["psnr"] = psnr(true, reconstructions(model, true)).mean().item()
    template = generation.samples.get("text") or generation.samples.get("class")
    if template is None:
        features = clip.embed_images(sample_prompts(model, [""] * len(FACES) * seeds, 0))
        groups = features[None]
    else:
        prompts = [template.format(name) for name in FACES]
        embedded = [clip.embed_images(sample_prompts(model, prompts, 1000 * seed)) for seed in range(seeds)]
        groups = torch.stack(embedded, dim=1)  # (32, seeds, D)
        features = groups.flatten(0, 1)
        texts = clip.embed_texts([f"a {name}" for name in FACES])
        rank = ranks(cosine(features, texts), torch.arange(len(FACES)).repeat_interleave(seeds))
        found["recall"] = recall_at(rank, 1).mean().item()
    found["frechet"] = frechet_distance(features, true_features(clip, side_of(model), seeds))
    found["diversity"] = diversity(groups)
    return found


def true_features(clip: Any, size: int, seeds: int) -> Tensor:
    """Of `seeds` differently placed renders of every face: (32·seeds, D)."""
    return clip.embed_images(BatchLoader(open_dataset("emoji-faces", size), seeds * len(FACES), 1).batch(0).x)


def diversity(groups: Tensor) -> float:
    """The mean of 1 − cosine over all pairs of different samples in a group: features (G, N, D)."""
    count = groups.shape[1]
    similar = cosine(groups, groups)  # (G, N, N)
    return (1 - (similar.sum((1, 2)) - count) / (count * (count - 1))).mean().item()


def peak_memory(name: str) -> int:
    """MB that a process takes to load a generation and to generate one image, above what it takes before. Linux only."""
    generation = next(each for each in GENERATIONS if each.name == name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _status("VmRSS")
    model = open_generation(generation, str(generation.folder(None)))
    template = next(iter(reversed(generation.samples.values())))
    sample_prompts(model, [template.format("fox")], 0)
    return round((_status("VmHWM") - before) / 1024)


def _status(field: str) -> int:
    """A figure of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--only", nargs="+", choices=[each.name for each in GENERATIONS], default=[each.name for each in GENERATIONS])
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        print(peak_memory(options.memory))
        return
    figures = json.loads(MEASURED.read_text()) if MEASURED.is_file() else {}
    for generation in GENERATIONS:
        if generation.name not in options.only or not generation.folder(None).is_dir():
            continue
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.lineage", "--memory", generation.name], check=True, capture_output=True, text=True
        )
        measured = measure(generation, options.seeds) | {"peak_memory_mb": int(process.stdout)}
        figures[generation.name] = figures.get(generation.name, {}) | measured
        print(generation.name, measured, flush=True)
        with atomic_path(Path(MEASURED)) as temporary:
            temporary.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
