"""`daguerre txt2img PROMPT…`: words in, picture files out; prints a path a line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING, Annotated, Literal, cast

import tyro

from daguerre.errors import DaguerreError
from daguerre.files import check_writable
from daguerre.pipelines.grid import labelled_grid
from daguerre.pipelines.metadata import FORMATS
from daguerre.pipelines.picture import FILM_FORMATS, check_suffix, save_film, write_image
from daguerre.pipelines.request import Request
from daguerre.progress import busy, track
from daguerre.weights.catalog import find, may_be_on_the_hub

if TYPE_CHECKING:
    from daguerre.diffusion.denoiser import Prediction
    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.models.latent_prior import LatentPrior

RANDOM = -1
OptionalText = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")]


@dataclass(frozen=True)
class Txt2Img:
    """Make pictures from words.

    Several prompts make a labelled grid beside the pictures. The paths of what was written are printed, one a line.
    """

    prompt: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="")]
    """What to draw; quote each prompt."""
    negative: str = Request.negative
    """What to stay away from."""
    steps: int = Request.steps
    """How many noise levels the sampler visits; more is slower and finer."""
    sampler: str = Request.sampler
    """How to go from one noise level to the next; `daguerre models --samplers` lists them. "DPM++ 2M Karras" is understood, too."""
    spacing: OptionalText = Request.spacing
    """Which noise levels to visit; `daguerre models --samplers` lists them. Trailing if neither this nor the sampler says."""
    guidance: float = Request.guidance
    """How much the prompt weighs; 1 is not at all more than the model learned."""
    seed: int = Request.seed
    """Of the first picture's noise; the next ones count on from it. -1 draws one."""
    count: int = Request.count
    """How many pictures of each prompt."""
    size: OptionalText = None
    """In pixels, one side (64) or WIDTHxHEIGHT (96x64); the model's own if not given."""
    out: OptionalPath = None
    """Where to write: .png, .webp or .jpg. Several pictures get -1, -2, … after the name, the grid the name itself."""
    grid: bool = False
    """Make a labelled grid of one prompt's pictures, too."""
    model: OptionalText = None
    """A name from `daguerre models`, a folder, a checkpoint file, or OWNER/NAME on the hub; the embedded model if not given."""
    vae: OptionalText = None
    """An autoencoder's folder or file, in place of the model's own."""
    prediction: Literal["known", "epsilon", "v", "x0"] = "known"
    """What the model predicts, where its file does not say."""
    film: OptionalPath = None
    """Also write an animation of the picture predicted at every step: .webp or .png."""
    preview: OptionalPath = None
    """Write a small picture of every step's prediction to this file while it runs."""
    device: OptionalText = None
    """cpu or cuda; cuda where there is one if not given."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the networks compute in."""
    offline: bool = False
    """Of the hub, look only at what was fetched before."""

    def request(self) -> Request:
        """The request that these options are."""
        width, height = parse_size(self.size)
        seed = randbelow(2**32) if self.seed == RANDOM else self.seed
        prompt = self.prompt[0] if len(self.prompt) == 1 else self.prompt
        fields = {name: getattr(self, name) for name in ("negative", "steps", "sampler", "spacing", "guidance", "count")}
        return Request(prompt=prompt, seed=seed, width=width, height=height, **fields)


def main(arguments: Sequence[str]) -> None:
    """Parse and run."""
    run(tyro.cli(Annotated[Txt2Img, tyro.conf.FlagCreatePairsOff], args=arguments, prog="daguerre txt2img"))


def run(options: Txt2Img) -> None:
    """Make the pictures and print where they are; what can be wrong with the options is told before the work begins."""
    request = options.request()
    out = options.out or Path(f"{slug(request.prompts[0])}-{request.seed}.png")
    for path, formats in ((out, FORMATS), (options.preview, FORMATS), (options.film, FILM_FORMATS)):
        if path is not None:
            check_writable(check_suffix(path, formats))
    with busy("opening the model"):
        model = open_any(options.model, options.vae, options.device, options.dtype, offline=options.offline, prediction=options.prediction)

    from daguerre.pipelines import Pictures, steps

    frames, pictures, labels = [], Pictures(), [prompt for prompt, _ in request.each]
    for step in track(steps(model, request), "making", request.steps):
        pictures = step.pictures or pictures
        if options.film:
            frames.append(labelled_grid([step.decode(i) for i in range(len(labels))], labels) if len(labels) > 1 else step.decode())
        if options.preview:
            write_image(options.preview, step.preview())
    written = pictures.save(out)
    if len(request.prompts) > 1 or options.grid:
        written.append(pictures.grid().save(out))
    if options.film:
        written.append(save_film(options.film, frames))
    for path in written:
        print(path)


def open_model(
    name: str | None, vae: str | None, device: str | None, dtype: str, *, offline: bool, prediction: str = "known"
) -> "LatentDiffusion":
    """The diffusion model of the command line's options, with another autoencoder where one is named.

    Raises:
        DaguerreError: there is no such model, or the autoencoder's latents are not the model's.
    """
    model = open_any(name, vae, device, dtype, offline=offline, prediction=prediction)
    from daguerre.models.latent_diffusion import LatentDiffusion

    if not isinstance(model, LatentDiffusion):
        raise DaguerreError(f"'{name}' is a prior over codes, where a diffusion model is needed; `daguerre sample {name}` draws from it.")
    return model


def open_any(
    name: str | None, vae: str | None, device: str | None, dtype: str, *, offline: bool, prediction: str = "known"
) -> "LatentDiffusion | LatentPrior":
    """As `open_model`, and priors over codes, too."""
    if not may_be_on_the_hub(name):
        find(name)  # before torch is imported, which takes a second that a wrong name need not cost

    import torch

    from daguerre.models.latent_diffusion import LatentDiffusion
    from daguerre.weights import load_any

    told = cast("Prediction | None", None if prediction == "known" else prediction)
    model = load_any(name, device=device, dtype=getattr(torch, dtype), offline=offline, prediction=told)
    if vae is None:
        return model
    if not isinstance(model, LatentDiffusion):
        raise DaguerreError(f"'{name}' is a prior over the codes of its own first stage; leave out --vae.")
    return _with_autoencoder(model, vae, offline)


def _with_autoencoder(model: "LatentDiffusion", vae: str, offline: bool) -> "LatentDiffusion":
    from daguerre.models.autoencoder_kl import AutoencoderKL
    from daguerre.weights import load_vae

    own = model.autoencoder
    scale = own.config.scaling_factor if isinstance(own, AutoencoderKL) else 1.0  # of the latents that this model makes
    autoencoder = load_vae(vae, device=model.device, dtype=model.dtype, offline=offline, scaling_factor=scale)
    channels, wanted = autoencoder.config.latent_channels, model.unet.config.out_channels
    if channels != wanted:
        raise DaguerreError(f"The autoencoder '{vae}' has {channels} latent channels and the model {model.name!r} makes {wanted}.")
    name = f"{model.name} + {Path(vae).stem}"
    return replace(model, autoencoder=autoencoder, name=name, files=())  # no model of that name is found by mistake


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """(width, height) of "64" or "96x64", (None, None) of nothing.

    Raises:
        DaguerreError: it is neither.
    """
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", size.strip().lower())
    if match is None:
        raise DaguerreError(f"The size {size!r} is neither one side, such as 64, nor WIDTHxHEIGHT, such as 96x64.")
    return int(match[1]), int(match[2] or match[1])


def slug(prompt: str) -> str:
    """A short file name of a prompt: its letters and digits, "picture" where it has none."""
    return "-".join(re.findall(r"\w+", prompt.lower()))[:40].strip("-") or "picture"
