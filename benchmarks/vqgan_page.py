"""The page of `benchmarks.vqgan`: each experiment with its protocol, its numbers, and whether the paper's relation holds here."""

from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


THIN = (
    "> With so little time the first stages are blurred and the priors have only begun to learn: read this page as a check that every "
    "experiment runs, and its verdicts as those of the first seconds of training. "
    "The default budget is what the relations should be judged by."
)


def page(found: Mapping[str, Found], minutes: float, threads: int) -> str:
    """The whole page as Markdown."""
    return "\n\n".join(
        [
            "# The experiments of the VQGAN paper, in small",
            "Esser et al. 2021, [arXiv:2012.09841](https://arxiv.org/abs/2012.09841). Drawn shapes of 32 pixels, one in each picture, "
            "half of "
            f"them on a coloured background; 4000 to train on, 500 others to measure on, one training seed (0). All trainings together had "
            f"**{minutes:g} minutes of processor time** on {threads} thread{'s' if threads > 1 else ''}, shared out as `SHARES` in "
            "`benchmarks/vqgan.py` says; the default is 80 minutes. `python -m benchmarks.vqgan` makes this page again. Brackets are 95 % "
            "bootstrap intervals over the measured pictures; they say nothing about another training seed. Fréchet distances are "
            "between 48 "
            "features of a small classifier of shape and colour that was trained here, and not comparable with published FIDs.",
            *([THIN] if minutes < 20 else []),
            *(section(found[name]) for name, section in SECTIONS.items() if name in found),
            "",
        ]
    )


def priors(found: Found) -> str:
    rows = [
        [name, f"{at['parameters'] / 1e3:.0f} k", f"{at['steps']:.0f}", f"{at['seconds']:.0f}", of(at["bits/code"])]
        for name in ("transformer", "pixelsnail", "pixelsnail, equal steps")
        for at in [found[name]]
    ]
    at_time, at_steps = found["pixelsnail, difference"], found["pixelsnail, equal steps, difference"]
    return "\n\n".join(
        [
            "## Transformer against PixelSNAIL",
            "NLL of 500 pictures' codes (VQGAN, f4: 64 codes of 128), told nothing; batches of 32. The paper's table 1: the transformer is "
            "ahead at equal time and at equal steps.",
            table(["prior", "parameters", "steps", "seconds", "bits/code"], rows),
            f"PixelSNAIL minus transformer, picture by picture: {of(at_time)} bits/code at equal time, {of(at_steps)} at equal steps. "
            + verdict(at_time, "At equal time the transformer is ahead, as in the paper.", "At equal time PixelSNAIL is ahead here")
            + " "
            + verdict(at_steps, "At equal steps, too.", "At equal steps PixelSNAIL is ahead here"),
            "![samples](priors.png)",
        ]
    )


def pixels(found: Found) -> str:
    rows = [
        [
            name,
            f"{at['steps']:.0f}",
            of(at["bits/pixel"]),
            of(at["psnr"], 1),
            f"{at['seconds/picture']:.2f}",
            f"{at['frechet']:.2f}",
        ]
        for name in ("codes f2", "pixels")
        for at in [found[name]]
    ]
    faster = found["pixels"]["seconds/picture"] / found["codes f2"]["seconds/picture"]
    better = found["codes f2"]["frechet"] < found["pixels"]["frechet"]
    return "\n\n".join(
        [
            "## The same transformer on pixels and on codes",
            "1024 pixels of 64 colours, or 256 codes of f2, at equal time; NLL on 100 pictures, the Fréchet distance of 16 samples. "
            "Neither "
            "representation is exact, so the PSNR of what each keeps stands beside its length. The paper: codes are 14 times as fast to "
            "sample, and their FID is 19 % lower.",
            table(["tokens", "steps", "bits/pixel", "PSNR of what is kept, dB", "seconds/picture", "Fréchet"], rows),
            f"Codes are sampled {faster:.1f} times as fast. "
            + (
                "Their samples are nearer to true pictures, as in the paper."
                if better
                else "Their samples are not nearer to true pictures here."
            ),
            "![samples](pixels.png)",
        ]
    )


def window(found: Found) -> str:
    rows = [
        [
            name,
            f"{4 * int(name[1:])} pixels",
            f"{at['steps']:.0f}",
            f"{at['frechet']:.2f}",
            f"{at['frechet of reconstructions']:.2f}",
            f"{at['seconds/picture']:.3f}",
        ]
        for name, at in found.items()
    ]
    best = min(found, key=lambda name: found[name]["frechet"])
    falls = found["f8"]["frechet"] < found["f4"]["frechet"] < found["f2"]["frechet"]
    return "\n\n".join(
        [
            "## The same window of codes at f2, f4 and f8",
            "A transformer that sees 4×4 codes at once, at equal time each, and 128 pictures drawn by a sliding window. The paper's "
            "section "
            "4.4: with the number of codes fixed, larger f lets the transformer see more of the picture, and structure holds together, "
            "until "
            "the reconstructions suffer.",
            table(["codes", "seen at once", "steps", "Fréchet of samples", "of reconstructions", "seconds/picture"], rows),
            (
                "The distance falls with f, as in the paper."
                if falls
                else f"The distance does not fall all the way with f here: {best} is best."
            ),
            "![samples](window.png)",
        ]
    )


def reconstruction(found: Found) -> str:
    rows = [
        [name, f"{at['steps']:.0f}", f"{at['seconds']:.0f}", of(at["psnr"], 2), of(at["ssim"]), f"{at['frechet']:.2f}"]
        for name in ("vqvae f4", "vqgan f4")
        for at in [found[name]]
    ]
    holds = found["vqgan f4"]["frechet"] < found["vqvae f4"]["frechet"]
    return "\n\n".join(
        [
            "## VQ-VAE against VQGAN",
            "The same network (f4, 128 codes) with the same time; the VQGAN's critic enters after a third of the VQ-VAE's steps, with the "
            "adaptive weight. 500 pictures. The paper, and pictures of other scales: the critic costs PSNR and wins in what features see.",
            table(["first stage", "steps", "seconds", "PSNR, dB", "SSIM", "Fréchet"], rows),
            f"VQ-VAE minus VQGAN: {of(found['psnr difference'], 2)} dB. Two sets of true pictures are "
            f"{found['frechet of true pictures']:.2f} apart. "
            + (
                "By the features the VQGAN is nearer to the pictures, as in the paper."
                if holds
                else "By the features the VQGAN is not nearer to the pictures here; flat shapes have little texture for a critic to "
                "bring back, "
                "and it takes its part of the time."
            ),
            "![given, VQ-VAE, VQGAN](reconstruction.png)",
        ]
    )


def told(found: Found) -> str:
    rows = [[name, of(found[name]["bits/code"]), of(found[name]["saved"]) if "saved" in found[name] else ""] for name in found]
    by_class, by_map = found["class"], found["map"]
    saved = [
        verdict(found[name]["saved"], f"Telling the {name} saves bits.", f"Telling the {name} saves none here") for name in ("class", "map")
    ]
    return "\n\n".join(
        [
            "## Told a class, told a map, told nothing",
            "The same transformer over the VQGAN's codes, at equal time: behind nothing, behind the shape as a class, behind the 64 "
            "codes of "
            "a semantic map by a second VQ-VAE. The paper's sections 4.2 and 4.3.",
            table(["told", "bits/code", "saved against nothing"], rows),
            " ".join(saved),
            f"Of 128 pictures drawn by a class the classifier takes {of(by_class['taken for it'])} for it; of the same true pictures, "
            "rebuilt, "
            f"{of(by_class['rebuilt taken for it'])}; of true ones {of(by_class['true taken for it'])}.",
            "![by class](classes.png)",
            "Agreement of 128 pictures with their map, the intersection over union of where the picture differs from the colour around the "
            f"shape: **{of(by_map['agreement'])}**; of the true pictures, rebuilt, {of(by_map['agreement of rebuilt'])}; of pictures with "
            f"another one's map {of(by_map['agreement with another map'])}.",
            "![by map](maps.png)",
        ]
    )


SECTIONS = {"priors": priors, "pixels": pixels, "window": window, "reconstruction": reconstruction, "told": told}


def verdict(difference: Mapping[str, float], holds: str, fails: str) -> str:
    """What an interval says of a difference that the paper has above zero."""
    if difference["low"] > 0:
        return holds
    return f"{fails}." if difference["high"] < 0 else f"{fails}, or neither: the interval holds zero."


def of(interval: Mapping[str, float], digits: int = 3) -> str:
    return "{value:.{d}f} [{low:.{d}f}, {high:.{d}f}]".format(d=digits, **interval)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
