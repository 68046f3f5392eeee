"""The page of `benchmarks.vqgan`: each experiment with its protocol, its numbers, and whether the paper's relation holds here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]  # what one experiment measured with one training seed

DEFAULT = 60.0  # minutes
ENOUGH = 25  # minutes for each seed
THIN = (
    "> With so little time the first stages are blurred, the VQGAN's most of all, whose critic enters hardly later than its codebook, and "
    "the priors have only begun to learn. Read the verdicts as those of the first minutes of training; the default budget is what the "
    "relations should be assessed by."
)


def page(found: Sequence[Mapping[str, Found]], minutes: float) -> str:
    """The whole page as Markdown, of what the experiments measured with each training seed."""
    seeds, default = len(found), "the default" if minutes == DEFAULT else f"the default is {DEFAULT:g}"
    return "\n\n".join(
        [
            "# The experiments of the VQGAN paper, in small",
            "Esser et al. 2021, [arXiv:2012.09841](https://arxiv.org/abs/2012.09841). Drawn shapes of 32 pixels, one in each image, half "
            "of them on a coloured background; 16000 to train on, 500 others to measure on. All trainings of all seeds together had "
            f"**{minutes:g} minutes of processor time** ({default}), one thread each, shared out as `SHARES` in `benchmarks/vqgan.py` "
            "says. "
            + (
                f"Everything was trained {seeds} times, once for each seed: a table has a row for each, the images are those of seed 0. "
                if seeds > 1
                else "Everything was trained once, with seed 0. "
            )
            + "A relation of the paper is said to hold where it holds with every seed and no interval touches zero. "
            "`python -m benchmarks.vqgan` makes this page again.",
            "Brackets are 95 % bootstrap intervals over the measured images; "
            + ("how far the seeds lie apart shows what they don't cover. " if seeds > 1 else "they say nothing about another seed. ")
            + "Fréchet distances are between 48 features of a small classifier of shape and colour that was trained here: not comparable "
            "with published FIDs, nor one table's with another's where the number of images differs. Their intervals are the spread of "
            "300 redraws, laid around the distance, for a distance of few images is biased upwards.",
            "All networks are trained by AdamW, first stages at a rate of 2e-3, priors at 4e-3: of 1e-3, 2e-3 and 4e-3 that was "
            "PixelSNAIL's best in runs of 30 seconds (2.99, 2.70, 2.45 bits/code), and the transformer's too (2.64, 2.54, 2.54). They are "
            "small, and see few images: what the paper's networks do with a thousand times as much is another question.",
            *([THIN] if minutes / seeds < ENOUGH else []),
            *(section([each[name] for each in found]) for name, section in SECTIONS.items()),
            "",
        ]
    )


def priors(seeds: Sequence[Found]) -> str:
    names = ("transformer", "pixelsnail", "pixelsnail, equal steps")
    at_time, at_steps = ([each[f"{name}, difference"] for each in seeds] for name in names[1:])
    return "\n\n".join(
        [
            "## Transformer against PixelSNAIL",
            "NLL of 500 images' codes (VQGAN, f4: 64 codes of 128), unconditional; batches of 32. The paper's table 1: the transformer is "
            "ahead at equal time and at equal steps.",
            table(
                ["prior", "seed", "parameters", "steps", "seconds", "bits/code"],
                rows(
                    seeds,
                    names,
                    lambda at: [f"{at['parameters'] / 1e3:.0f} k", count(at["steps"]), count(at["seconds"]), of(at["bits/code"])],
                ),
            ),
            f"PixelSNAIL minus transformer, image by image: {all_of(at_time)} bits/code at equal time, {all_of(at_steps)} at equal "
            "steps. "
            + " ".join(
                verdict(
                    differences,
                    f"which is ahead at equal {what}",
                    f"At equal {what} the transformer is ahead, as in the paper.",
                    f"At equal {what} PixelSNAIL is ahead here.",
                )
                for what, differences in (("time", at_time), ("steps", at_steps))
            ),
        ]
    )


def pixels(seeds: Sequence[Found]) -> str:
    names = ("codes f2", "pixels")
    farther = [each["frechet"]["pixels, farther"] for each in seeds]
    faster = " · ".join(f"{each['pixels']['seconds/image'] / each['codes f2']['seconds/image']:.1f}" for each in seeds)
    found = [{name: each[name] | {"frechet": each["frechet"][name]} for name in names} for each in seeds]
    return "\n\n".join(
        [
            "## The same transformer on pixels and on codes",
            "1024 pixels of 64 colours, or 256 codes of f2, at equal time, batches of 8; NLL on 100 images; the Fréchet distance of 128 "
            "samples to the 500 true images. Neither representation is exact, so the PSNR of each is given next to its length. "
            "The paper (section 4.1): codes are 14 times as fast to sample, and their FID is 19 % lower.",
            table(
                ["tokens", "seed", "steps", "bits/pixel", "PSNR of what is kept, dB", "seconds/image", "Fréchet"],
                rows(
                    found,
                    names,
                    lambda at: [
                        count(at["steps"]),
                        of(at["bits/pixel"]),
                        of(at["psnr"], 1),
                        f"{at['seconds/image']:.3f}",
                        of(at["frechet"], 0),
                    ],
                ),
            ),
            f"As many other true images are {of(seeds[0]['frechet']['true'], 0)} away from them. Codes are sampled {faster} times as "
            f"fast. Pixels minus codes, Fréchet: {all_of(farther, 0)}. "
            + verdict(
                farther,
                "which samples are nearer to true images",
                "The samples from codes are nearer to true images, as in the paper.",
                "The samples from pixels are nearer to true images here.",
            ),
        ]
    )


def window(seeds: Sequence[Found]) -> str:
    names = ("f2", "f4", "f8")
    found = [{name: each[name] | {"frechet": each["frechet"][name], "rebuilt": each["rebuilt"][name]} for name in names} for each in seeds]
    against = {name: [each["frechet"][f"{name}, farther"] for each in seeds] for name in ("f2", "f4")}
    own = [[each[name]["to rebuilt"]["samples, times"] for name in ("f2", "f8")] for each in seeds]
    return "\n\n".join(
        [
            "## The same window of codes at f2, f4 and f8",
            "A transformer that sees 4×4 codes at once, at equal time each, and 128 images drawn by a sliding window. The paper's "
            "section 4.4: with the number of codes fixed, larger f lets the transformer see more of the image, and structure holds "
            "together, until the reconstructions suffer. So the samples are measured against true images, and, for the prior's own part, "
            "against the 500 true images rebuilt by the same first stage: how many times as far as 128 others that it rebuilt, for what "
            "is blurred is nearer to its like, whoever made it. Beside that, how far the reconstructions are from true images.",
            table(
                ["codes", "seed", "seen at once", "steps", "samples to true", "to rebuilt", "times others", "rebuilt to true", "s/image"],
                [
                    [row[0], row[1], f"{4 * int(row[0][1:])} pixels", *row[2:]]
                    for row in rows(
                        found,
                        names,
                        lambda at: [
                            count(at["steps"]),
                            of(at["frechet"], 0),
                            of(at["to rebuilt"]["samples"], 0),
                            of(at["to rebuilt"]["samples, times"], 2),
                            of(at["rebuilt"], 0),
                            f"{at['seconds/image']:.4f}",
                        ],
                    )
                ],
            ),
            f"128 other true images are {of(seeds[0]['frechet']['true'], 0)} away from true ones. "
            + " ".join(
                f"{name} minus f8, samples to true: {all_of(each, 0)}. "
                + verdict(each, "which of them is nearer", f"f8 is nearer than {name}, as in the paper.", f"{name} is nearer than f8 here.")
                for name, each in against.items()
            ),
            "The prior's own part, how many times as far its samples are from what its first stage rebuilds, "
            + (
                "is less at f8 than at f2: what sees more holds together better, as in the paper."
                if all(f8["high"] < f2["low"] for f2, f8 in own)
                else "is not clearly less at f8 than at f2 here; in the paper what sees more holds together better."
            ),
        ]
    )


def reconstruction(seeds: Sequence[Found]) -> str:
    names = ("vqvae f4", "vqgan f4")
    found = [{name: each[name] | {"frechet": each["frechet"][name]} for name in names} for each in seeds]
    farther = [each["frechet"]["vqvae f4, farther"] for each in seeds]
    decibels = [each["psnr difference"] for each in seeds]
    return "\n\n".join(
        [
            "## VQ-VAE against VQGAN",
            "The same network (f4, 128 codes) with the same time; the VQGAN's critic enters after a third of the VQ-VAE's steps, with the "
            "adaptive weight and no perceptual network. 500 images and their reconstructions. In the paper the critic costs PSNR and "
            "wins in what features see.",
            table(
                ["first stage", "seed", "steps", "seconds", "PSNR, dB", "SSIM", "Fréchet"],
                rows(
                    found,
                    names,
                    lambda at: [count(at["steps"]), count(at["seconds"]), of(at["psnr"], 2), of(at["ssim"]), of(at["frechet"], 1)],
                ),
            ),
            f"VQ-VAE minus VQGAN: {all_of(decibels, 2)} dB, and {all_of(farther, 1)} in Fréchet distance. "
            + verdict(
                decibels,
                "whether the critic costs decibels",
                "The critic costs decibels, as in the paper.",
                "The critic costs no decibels here.",
            )
            + " "
            + verdict(
                farther,
                "which is nearer to the images by the features",
                "By the features the VQGAN is nearer to the images, as in the paper.",
                "By the features the VQ-VAE is nearer to the images here: flat shapes have little texture for a critic to bring back, "
                "and it takes its part of the time.",
            ),
        ]
    )


def conditional(seeds: Sequence[Found]) -> str:
    saved = {name: [each[name]["saved"] for each in seeds] for name in ("class", "map")}
    by_class = rows(
        [{name: {what: each["class"][f"{name}, {what}"] for what in ("shape", "colour")} for name in IMAGE_SETS} for each in seeds],
        IMAGE_SETS,
        lambda at: [of(at["shape"]), of(at["colour"])],
    )
    by_map = rows(
        [{name: {"iou": each["map"][key]} for name, key in AGREEMENTS.items()} for each in seeds],
        tuple(AGREEMENTS),
        lambda at: [of(at["iou"])],
    )
    above = [each["map"]["agreement above another's"] for each in seeds]
    return "\n\n".join(
        [
            "## Conditioned on a class, on a map, unconditional",
            "The same transformer over the VQGAN's codes, at equal time: behind nothing, behind colour and shape as one class, behind the "
            "64 codes of a semantic map by a second VQ-VAE. The paper's sections 4.2 and 4.3.",
            table(
                ["condition", "seed", "bits/code", "saved against unconditional"],
                rows(seeds, ("nothing", "class", "map"), lambda at: [of(at["bits/code"]), of(at["saved"]) if "saved" in at else ""]),
            ),
            " ".join(
                verdict(
                    each,
                    f"whether telling the {name} saves bits",
                    f"Telling the {name} saves bits.",
                    f"Telling the {name} costs bits here: its tokens take their part of the time.",
                )
                for name, each in saved.items()
            ),
            "What the classifier takes 128 images for that were drawn by a class, the share of the right answers; and the true images "
            "of these classes, rebuilt by the VQGAN and as they are. The smallest shapes are six pixels wide, so that even true ones are "
            "mistaken.",
            table(["images", "seed", "shape", "colour"], by_class),
            "Agreement with the map: the intersection over union of where the image differs from the colour around the shape, and where "
            "the map has it; 128 images.",
            table(["images", "seed", "intersection over union"], by_map),
            f"With their own map minus with another's: {all_of(above)}. "
            + verdict(
                above,
                "whether the samples follow their map",
                "The samples follow their map, as in the paper.",
                "The samples do not follow their map here.",
            ),
        ]
    )


IMAGE_SETS = ("drawn", "rebuilt", "true")
AGREEMENTS = {
    "drawn by the map": "agreement",
    "true, rebuilt": "agreement of rebuilt",
    "drawn by another's map": "agreement with another map",
}
SECTIONS: dict[str, Callable[[Sequence[Found]], str]] = {
    "priors": priors,
    "pixels": pixels,
    "window": window,
    "reconstruction": reconstruction,
    "conditional": conditional,
}


def verdict(differences: Sequence[Mapping[str, float]], question: str, holds: str, fails: str) -> str:
    """What the intervals of all seeds answer to a question, by a difference that the paper has above zero."""
    if all(difference["low"] > 0 for difference in differences):
        return holds
    if all(difference["high"] < 0 for difference in differences):
        return fails
    return f"The seeds, or their intervals, leave open {question}; in the paper the difference is above zero."


def rows(seeds: Sequence[Found], names: Sequence[str], cells: Callable[[Found], list[str]]) -> list[list[str]]:
    """A row for each name and seed."""
    return [[name, str(seed), *cells(found[name])] for name in names for seed, found in enumerate(seeds)]


def all_of(intervals: Sequence[Mapping[str, float]], digits: int = 3) -> str:
    return " · ".join(of(interval, digits) for interval in intervals)


def of(interval: Mapping[str, float], digits: int = 3) -> str:
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(d=digits, **interval)


def count(number: float) -> str:
    return f"{number:.0f}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    found = [head, ["---", *["---:"] * (len(head) - 1)], *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in found)
