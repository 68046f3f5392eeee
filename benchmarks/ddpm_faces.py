"""How recognisable the samples of the shipped DDPM are: `python -m benchmarks.ddpm_faces`, a few minutes on one core.

The CLIP in `assets/clip` ranks the 32 class names for each sample, and for true renders as a reference. By chance the right
name is first for 3 % of the images.
"""

import argparse

import torch
from torch import Tensor

import daguerre
from daguerre.conditioning.class_map_image import LabelConditioner
from daguerre.data import BatchLoader, to_tensor
from daguerre.data.catalog import open_dataset
from daguerre.evaluation.clip_scorer import load_clip_scorer
from daguerre.metrics import cosine, proportion, ranks, recall_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ddpm")
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    model, scorer = daguerre.load(options.model), load_clip_scorer()
    assert isinstance(model.conditioner, LabelConditioner)
    names = model.conditioner.names
    texts = scorer.embed_texts([f"a {name}" for name in names])

    def report(title: str, x: Tensor, labels: Tensor) -> None:
        scores = cosine(scorer.embed_images(x), texts)
        rank = ranks(scores, labels)
        print(f"{title}: R@1 {proportion(recall_at(rank, 1))}, R@5 {proportion(recall_at(rank, 5))}, {len(x)} images", flush=True)

    images = open_dataset("emoji-faces", model.sample_size)
    batch = BatchLoader(images, options.seeds * len(names), 1).batch(0)
    report("true renders", batch.x, torch.tensor([names.index(caption) for caption in batch.captions]))
    generated = [image for seed in range(options.seeds) for image in daguerre.generate(model, prompt=names, seed=seed)]
    x = torch.stack([to_tensor(image.image) for image in generated])
    report("samples", x, torch.arange(len(names)).repeat(options.seeds))


if __name__ == "__main__":
    main()
