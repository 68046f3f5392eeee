"""First stages on their own: plain and variational autoencoders, VQ-VAE, VQGAN, and the KL autoencoder of latent diffusion, f2 to f32.

One recipe a kind, which share data, size, f and loop. Each builds its network and its stage; `run` does the rest and leaves a model folder.
Kingma and Welling 2014, arXiv:1312.6114; van den Oord et al. 2017, arXiv:1711.00937; Esser et al. 2021, arXiv:2012.09841; Rombach et al.
2022, arXiv:2112.10752, section 3.1.
"""

import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from daguerre.data import Batches, EmojiSource, FolderSource, ShapesSource, Source
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.vector_quantizer import QuantizerConfig
from daguerre.models.vq_model import VQModel, VQModelConfig
from daguerre.training.autoencoder import AutoencoderLoss, AutoencoderStage
from daguerre.training.first_stages import PlainStage, QuantizedStage, VariationalStage, cooled
from daguerre.training.loop import LoopConfig, train
from daguerre.training.perceptual import Perceptual, load_perceptual
from daguerre.training.processes import rank
from daguerre.training.recipes.run import remember
from daguerre.training.recipes.stages import with_measured_scale
from daguerre.weights import save_first_stage
from daguerre.weights.first_stages import FirstStage

MULTIPLES = (1, 2, 3, 4, 4, 4)  # of the width, from full resolution down to 1/32
LATENT_CHANNELS = {2: 4, 4: 8, 8: 16, 16: 32, 32: 64}  # by f: a latent has about a tenth of its picture's numbers
GROUPS = 4  # of every norm: with few channels a group it is nearly instance norm, which forgets colour
DECAY = 0.95  # of the codes' averages: the encoder moves fast at first, and what falls behind shall be found dead soon
LOOP = LoopConfig(steps=2000, batch_size=16, learning_rate=8e-4, ema=0.998, precision="bf16", sample_every=500, checkpoint_every=500)
ADVERSARIAL = AutoencoderLoss(adversarial=0.5, adversarial_start=1000, adversarial_ramp=200)


@dataclass(frozen=True)
class FirstStageRecipe:
    """What every first stage is told. Run again with the same values, it goes on where it was stopped."""

    data: str  # a folder of pictures, or what the program draws: shapes, emoji
    out: Path
    size: int = 64  # pixels a side
    f: Literal[2, 4, 8, 16, 32] = 4  # how many times smaller a latent's sides are
    width: int = 32  # channels at full resolution, a multiple of 4
    skip_bad: bool = False  # skip and count unreadable pictures instead of stopping
    loop: Annotated[LoopConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: LOOP)

    def __post_init__(self) -> None:
        if self.width < GROUPS or self.width % GROUPS:
            raise DaguerreError(f"width is {self.width}; it must be a multiple of {GROUPS}, such as 32.")
        if self.size < self.f or self.size % self.f:
            raise DaguerreError(f"size is {self.size}; with f {self.f} it must be a multiple of {self.f}, such as {16 * self.f}.")

    def network(self) -> FirstStage:
        """The network, untrained."""
        raise NotImplementedError

    def stage(self, network: Any, shown: Tensor, perceptual: Perceptual | None) -> AutoencoderStage:
        """What trains it; the pictures `shown` (N, 3, H, W) make the sample grid."""
        raise NotImplementedError

    @property
    def shape(self) -> dict[str, Any]:
        """What the configs of all networks share."""
        levels = self.f.bit_length()
        channels = tuple(self.width * multiple for multiple in MULTIPLES[:levels])
        return {"channels": channels, "blocks": 1, "attention_levels": (), "mid_attention": False, "norm_groups": GROUPS}


@dataclass(frozen=True)
class _Continuous(FirstStageRecipe):
    latent_channels: int | None = None  # none: 4 at f2, then twice as many with each level

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_channels is not None and self.latent_channels < 1:
            raise DaguerreError(f"latent_channels is {self.latent_channels}; it must be 1 or more.")

    def network(self) -> AutoencoderKL:
        channels = self.latent_channels or LATENT_CHANNELS[self.f]
        return AutoencoderKL(AutoencoderKLConfig(latent_channels=channels, quant_conv=False, post_quant_conv=False, **self.shape))


@dataclass(frozen=True)
class _Rebuilding(FirstStageRecipe):
    loss: AutoencoderLoss = AutoencoderLoss()
    perceptual: tuple[Path, ...] = ()  # one or two files with LPIPS's weights, or the folder of a CLIP or an autoencoder
    critic: PatchDiscriminatorConfig = PatchDiscriminatorConfig(channels=32, layers=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        loss, end = self.loss, self.loss.adversarial_start + self.loss.adversarial_ramp
        if loss.perceptual and not self.perceptual:
            raise DaguerreError("--loss.perceptual weighs a perceptual distance, but none is given; name its weights with --perceptual.")
        if loss.adversarial and end > self.loop.steps:
            raise DaguerreError(
                f"The critic enters at step {loss.adversarial_start} and has its full weight at step {end}, but there are only "
                f"{self.loop.steps} steps; give more --steps, an earlier --loss.adversarial-start, or --loss.adversarial 0 for none."
            )

    @property
    def weights(self) -> AutoencoderLoss:
        """The weights of the loss; a perceptual distance that is given counts."""
        return replace(self.loss, perceptual=self.loss.perceptual or 1.0) if self.perceptual else self.loss

    def others(self, perceptual: Perceptual | None) -> dict[str, Any]:
        """The networks beside the first stage, as a stage takes them."""
        critic = PatchDiscriminator(self.critic) if self.loss.adversarial else None
        return {"discriminator": critic, "perceptual": perceptual and perceptual.distance}


@dataclass(frozen=True)
class PlainRecipe(_Rebuilding, _Continuous):
    """Train a plain autoencoder: nothing keeps its latent close to anything."""

    out: Path = Path("runs/autoencoder")

    def stage(self, network: AutoencoderKL, shown: Tensor, perceptual: Perceptual | None) -> PlainStage:
        return PlainStage(network, self.weights, shown, **self.others(perceptual))


@dataclass(frozen=True)
class VariationalRecipe(_Continuous):
    """Train a variational autoencoder on the evidence lower bound, in bits."""

    out: Path = Path("runs/vae")

    def stage(self, network: AutoencoderKL, shown: Tensor, perceptual: Perceptual | None) -> VariationalStage:
        return VariationalStage(network, shown)


@dataclass(frozen=True)
class KLRecipe(_Rebuilding, _Continuous):
    """Train the autoencoder of latent diffusion: a slight pull towards a unit Gaussian, and a critic."""

    out: Path = Path("runs/kl")
    loss: AutoencoderLoss = replace(ADVERSARIAL, kl=1e-3)

    def stage(self, network: AutoencoderKL, shown: Tensor, perceptual: Perceptual | None) -> AutoencoderStage:
        return AutoencoderStage(network, self.weights, shown, **self.others(perceptual))


@dataclass(frozen=True)
class VQVAERecipe(_Rebuilding):
    """Train a VQ-VAE: the latent is a grid of codes."""

    out: Path = Path("runs/vqvae")
    codes: int = 512
    code_width: int = 16  # numbers in a code's vector
    codebook: Literal["nearest", "average", "gumbel"] = "average"  # moved by the loss, by averages, or drawn from
    revive: float | None = None  # codes that fewer places a batch fall to are moved; none: 0.1, but for "gumbel"
    enters: int = 200  # steps before a codebook that is not "gumbel" takes part, in which the latent finds its form
    cooling: int = 1000  # steps over which the temperature of one that is falls

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook == "gumbel" and self.cooling > self.loop.steps:
            raise DaguerreError(
                f"The codebook's temperature falls for {self.cooling} steps, but there are only {self.loop.steps}; "
                "give more --steps or a shorter --cooling."
            )
        if self.codebook != "gumbel" and self.enters >= self.loop.steps:
            raise DaguerreError(
                f"The codebook takes part from step {self.enters} on, but there are only {self.loop.steps}; give more --steps or a smaller "
                "--enters."
            )

    def network(self) -> VQModel:
        revive = self.revive if self.revive is not None else 0.0 if self.codebook == "gumbel" else 0.1
        quantizer = QuantizerConfig(self.codes, self.code_width, self.codebook, decay=DECAY, revive=revive)
        return VQModel(VQModelConfig(quantizer, latent_channels=self.shape["channels"][-1], **self.shape))

    def stage(self, network: VQModel, shown: Tensor, perceptual: Perceptual | None) -> QuantizedStage:
        when = {"temperature": cooled(self.cooling)} if self.codebook == "gumbel" else {"enters": self.enters}
        return QuantizedStage(network, self.weights, shown, **when, **self.others(perceptual))


@dataclass(frozen=True)
class VQGANRecipe(VQVAERecipe):
    """Train a VQGAN: a VQ-VAE that has to convince a critic."""

    out: Path = Path("runs/vqgan")
    loss: AutoencoderLoss = ADVERSARIAL
    codebook: Literal["nearest", "average", "gumbel"] = "nearest"


def run(recipe: FirstStageRecipe) -> Path:
    """Train, and return the folder of the finished first stage.

    Raises:
        DaguerreError: there are no pictures, a setting is impossible, or `out` holds another run.
    """
    source, loop = picture_source(recipe.data, recipe.size, skip_bad=recipe.skip_bad), recipe.loop
    paths = recipe.perceptual if isinstance(recipe, _Rebuilding) else ()
    perceptual = load_perceptual(paths) if paths else None
    torch.manual_seed(loop.seed)
    network = recipe.network()
    shown = Batches(source, 8, loop.seed + 1).batch(0).x
    stage = recipe.stage(network, shown, perceptual)
    plan = {
        "model": asdict(network.config),
        "loss": asdict(stage.weights),
        "perceptual": perceptual and perceptual.key,
        "perceptual from": perceptual and perceptual.name,
    }
    remember(recipe.out, type(recipe).__name__, source.key, size=recipe.size, seed=loop.seed, plan=plan)
    identity = {name: value for name, value in plan.items() if name != "perceptual from"} | {"source": source.key}
    train(stage, Batches(source, loop.batch_size, loop.seed), loop, recipe.out, recipe=identity)
    network = with_measured_scale(network, Batches(source, 256, loop.seed + 2).batch(0).x)
    if rank() == 0:
        save_first_stage(network, recipe.out / "model", recipe.size)
    return recipe.out / "model"


def picture_source(data: str, size: int, *, skip_bad: bool = False, crop: Literal["random", "center"] = "random") -> Source:
    """Pictures of `size` pixels a side: "shapes" or "emoji", which are drawn, or those of a folder, with captions or without.

    Raises:
        DaguerreError: there is no such folder, or no picture in it.
    """
    if data in DRAWN:
        return DRAWN[data](size)
    if not Path(data).is_dir():
        raise DaguerreError(f"There is no folder '{data}'; the data is a folder of pictures, or {' or '.join(DRAWN)}, which are drawn.")
    source = FolderSource(Path(data), size, crop=crop, captioned=False, skip_bad=skip_bad)
    for path, why in source.bad:
        print(f"skipped {path}: {why}", file=sys.stderr)
    return source


DRAWN = {"shapes": ShapesSource, "emoji": EmojiSource}
