"""The generations of models from the autoencoder to Stable Diffusion: what each added, and the commands that trained the shipped ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daguerre.weights.catalog import ASSETS

SMALL_F8 = "--f 8 --base-channels 16 --batch-size 16"
CODES_F4 = "--f 4 --codebook-size 512 --codebook ema --batch-size 8"
PRIOR = "--batch-size 16 --num-images 2400 --eval-images 128"
Row = Literal["reconstruct", "unconditional", "class", "text"]
ROWS: tuple[Row, ...] = ("reconstruct", "unconditional", "class", "text")


@dataclass(frozen=True)
class Generation:
    """One column of the sheet.

    commands: arguments of `daguerre train`, each a text with the field {runs}, the folder of all trainings; the last one trains the
        model itself, in the folder with the name of the generation.
    samples: the rows that it can generate, with the template of a prompt: {} is the name of a face.
    missing: why each of the other rows is empty.
    """

    name: str
    title: str
    paper: str
    added: str
    why: str
    commands: tuple[str, ...]
    samples: dict[Row, str]
    missing: dict[Row, str]

    def folder(self, runs: Path | None) -> Path:
        """Of the shipped model, or of the one that was trained in `runs`."""
        return ASSETS / self.name if runs is None else runs / self.name / "model"


NO_LABELS: dict[Row, str] = {"class": "has no classes", "text": "has no text"}
GENERATIONS = (
    Generation(
        "ae",
        "autoencoder",
        "Hinton and Salakhutdinov 2006",
        "an encoder and a decoder with a narrow latent between them",
        "a few numbers then describe an image; but nothing says which numbers are images, so random ones decode to none",
        (f"autoencoder --data emoji-faces --resolution 32 {SMALL_F8} --max-train-steps 1000",),
        {"unconditional": ""},
        NO_LABELS,
    ),
    Generation(
        "vae",
        "VAE",
        "Kingma and Welling 2014",
        "a normal distribution of the latents, by a KL term",
        "random latents then decode to plausible images; the average over all that a latent may mean is blurred",
        (f"vae --data emoji-faces --resolution 32 {SMALL_F8} --max-train-steps 1500",),
        {"unconditional": ""},
        NO_LABELS,
    ),
    Generation(
        "vqvae",
        "VQ-VAE + PixelCNN",
        "van den Oord et al. 2017",
        "a codebook: the latent is a grid of codes; and a prior that generates codes one after the other",
        "a network can learn the distribution of codes exactly, and reconstructions are no average any more",
        (
            f"vqvae --data emoji-faces --resolution 32 {CODES_F4} --max-train-steps 900 --out {{runs}}/vqvae-first-stage",
            f"prior --data emoji-faces --resolution 32 --first-stage {{runs}}/vqvae-first-stage/model --kind pixelcnn --condition class "
            f"{PRIOR} --hidden-size 96 --layers 5 --max-train-steps 900",
        ),
        {"class": "{}"},
        {"unconditional": "every image needs a class", "text": "has classes, no text"},
    ),
    Generation(
        "vqgan",
        "VQGAN + transformer",
        "Esser et al. 2021",
        "a perceptual loss and a discriminator for the codes, a transformer with text for their prior",
        "reconstructions are sharp at the same number of codes, and a transformer sees the whole grid and the words",
        (
            f"vqgan --data emoji-faces --resolution 32 {CODES_F4} --perceptual clip --perceptual-weight 0.5 "
            "--adversarial-weight 0.3 --adversarial-start 1600 --max-train-steps 2400 --out {runs}/vqgan-first-stage",
            f"prior --data emoji-faces --resolution 32 --first-stage {{runs}}/vqgan-first-stage/model --condition text {PRIOR} "
            "--hidden-size 128 --layers 4 --heads 4 --max-train-steps 1500",
        ),
        {"text": "{}"},
        {"unconditional": "every image needs a text", "class": "the text replaces the class"},
    ),
    Generation(
        "ddpm",
        "DDPM",
        "Ho et al. 2020",
        "generation as many small steps of denoising, of all pixels at once",
        "one simple regression loss, stable training, and no order of pixels; but each step takes the whole network at full resolution",
        (
            "ddpm --data emoji-faces --condition class --prediction v --schedule cosine --channels 32 64 128 --blocks 1 "
            "--attention-levels 2 --batch-size 16 --learning-rate 1e-3 --lr-warmup-steps 100 --ema-decay 0.998 --max-train-steps 1700",
        ),
        {"unconditional": "", "class": "{}"},
        {"reconstruct": "has no encoder: it works on pixels", "text": "has classes, no text"},
    ),
    Generation(
        "ldm",
        "latent diffusion",
        "Rombach et al. 2022",
        "the same denoising, of the latents of the VQGAN instead of pixels",
        "the autoencoder has the fine detail already, so a smaller network with cheaper steps learns the same faces in less time",
        (
            "ldm --data emoji-faces --resolution 32 --first-stage {runs}/vqgan-first-stage/model --condition class --prediction v "
            "--channels 48 96 --batch-size 16 --num-images 2400 --max-train-steps 1500",
        ),
        {"unconditional": "", "class": "{}"},
        {"text": "has classes, no text"},
    ),
    Generation(
        "emoji",
        "Stable Diffusion",
        "Rombach et al. 2022",
        "text: a text encoder and cross-attention; a KL autoencoder",
        "latents are cheap, so the same compute gives 128×128 pixels and any caption",
        ("emoji",),
        {"unconditional": "", "text": "a {}"},
        {"class": "the text replaces the class"},
    ),
)
