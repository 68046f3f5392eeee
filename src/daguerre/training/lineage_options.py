"""What trainings of first stages, of priors over their codes and of decoders can be told. Like `options`, nothing here imports torch."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import LoopConfig

GROUPS = 4  # of every norm: with few channels a group it is nearly instance norm, which forgets colour
FIRST_STAGE_LOOP = LoopConfig(
    max_train_steps=2000, batch_size=16, learning_rate=8e-4, ema_decay=0.998, mixed_precision="auto", sample_every=500, checkpoint_every=500
)
PRIOR_LOOP = LoopConfig(
    max_train_steps=3000,
    batch_size=32,
    learning_rate=1e-3,
    betas=(0.9, 0.95),
    ema_decay=0.998,
    mixed_precision="auto",
    sample_every=1000,
    checkpoint_every=500,
)


def require_multiple(size: int, f: int, whose: str) -> None:
    """Raise DaguerreError for a size in pixels that is no multiple of f."""
    if size < f or size % f:
        raise DaguerreError(f"size is {size}; for {whose} it must be a multiple of {f}, such as {max(round(size / f), 1) * f}.")


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the terms. Discriminator settings matter only where a discriminator is given."""

    l1: float = 1.0
    l2: float = 1.0
    gradient: float = 1.0  # L1 between finite differences: keeps outlines where there is no perceptual network
    perceptual: float = 0.0  # on LPIPS or a given encoder's features
    kl: float = 1e-4
    equivariance: float = 0.0  # share of batches whose latent is scaled or turned
    adversarial: float = 0.0  # weight of the generator's term, after the adaptive λ
    adversarial_start: int = 10_000  # steps; then the term rises linearly over as many as `adversarial_ramp`
    adversarial_ramp: int = 1_000
    largest_lambda: float = 1e4


ADVERSARIAL = AutoencoderLoss(adversarial=0.5, adversarial_start=1000, adversarial_ramp=200)


@dataclass(frozen=True)
class DiscriminatorOptions:
    """The size of a PatchDiscriminator."""

    channels: int = 32  # doubled by each layer, up to eight times
    layers: int = 2  # strided convolutions


@dataclass(frozen=True)
class _FirstStage:
    """What every first stage is told. Run again with the same values, it goes on where it was stopped."""

    data: str  # a folder of pictures, or what the program draws: shapes, emoji
    out: Path
    resolution: int = 64  # pixels a side
    f: Literal[2, 4, 8, 16, 32] = 4  # how many times smaller a latent's sides are
    width: int = 32  # channels at full resolution, a multiple of 4
    skip_bad: bool = False  # skip and count unreadable pictures instead of stopping
    loop: Annotated[LoopConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: FIRST_STAGE_LOOP)

    def __post_init__(self) -> None:
        if self.width < GROUPS or self.width % GROUPS:
            raise DaguerreError(f"width is {self.width}; it must be a multiple of {GROUPS}, such as 32.")
        require_multiple(self.resolution, self.f, f"f {self.f}")


@dataclass(frozen=True)
class _Continuous(_FirstStage):
    latent_channels: int | None = None  # none: 4 at f2, then twice as many with each level

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_channels is not None and self.latent_channels < 1:
            raise DaguerreError(f"latent_channels is {self.latent_channels}; it must be 1 or more.")


@dataclass(frozen=True)
class _AdversarialStage(_FirstStage):
    loss: AutoencoderLoss = AutoencoderLoss()
    perceptual: tuple[Path, ...] = ()  # one or two files with LPIPS's weights, or the folder of a CLIP or an autoencoder
    discriminator: DiscriminatorOptions = DiscriminatorOptions()

    def __post_init__(self) -> None:
        super().__post_init__()
        loss, end = self.loss, self.loss.adversarial_start + self.loss.adversarial_ramp
        if loss.perceptual and not self.perceptual:
            raise DaguerreError("--loss.perceptual weighs a perceptual distance, but none is given; name its weights with --perceptual.")
        if loss.adversarial and end > self.loop.max_train_steps:
            raise DaguerreError(
                f"The critic enters at step {loss.adversarial_start} and has its full weight at step {end}, but there are only "
                f"{self.loop.max_train_steps} steps; give more --steps, an earlier --loss.adversarial-start, or --loss.adversarial 0 for none."
            )

    @property
    def weights(self) -> AutoencoderLoss:
        """The weights of the loss; a perceptual distance that is given counts."""
        return replace(self.loss, perceptual=self.loss.perceptual or 1.0) if self.perceptual else self.loss


@dataclass(frozen=True)
class PlainRecipe(_AdversarialStage, _Continuous):
    """Train a plain autoencoder: nothing keeps its latent close to anything."""

    out: Path = Path("runs/autoencoder")


@dataclass(frozen=True)
class VariationalRecipe(_Continuous):
    """Train a variational autoencoder on the evidence lower bound, in bits."""

    out: Path = Path("runs/vae")


@dataclass(frozen=True)
class KLRecipe(_AdversarialStage, _Continuous):
    """Train the autoencoder of latent diffusion: a slight pull towards a unit Gaussian, and a critic."""

    out: Path = Path("runs/kl")
    loss: AutoencoderLoss = replace(ADVERSARIAL, kl=1e-3)


@dataclass(frozen=True)
class VQVAERecipe(_AdversarialStage):
    """Train a VQ-VAE: the latent is a grid of codes."""

    out: Path = Path("runs/vqvae")
    codebook_size: int = 512
    code_width: int = 16  # numbers in a code's vector
    codebook: Literal["nearest", "ema", "gumbel"] = "ema"  # moved by the loss, by averages, or drawn from
    dead_code_threshold: float | None = None  # codes that fewer places a batch fall to are moved; none: 0.1, but for "gumbel"
    codebook_start: int = 200  # steps before a codebook that is not "gumbel" takes part, in which the latent finds its form
    temperature_steps: int = 1000  # steps over which the temperature of one that is falls

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook == "gumbel" and self.temperature_steps > self.loop.max_train_steps:
            raise DaguerreError(
                f"The codebook's temperature falls for {self.temperature_steps} steps, but there are only {self.loop.max_train_steps}; "
                "give more --steps or a shorter --cooling."
            )
        if self.codebook != "gumbel" and self.codebook_start >= self.loop.max_train_steps:
            raise DaguerreError(
                f"The codebook takes part from step {self.codebook_start} on, but there are only {self.loop.max_train_steps}; give more --steps or a smaller "
                "--enters."
            )


@dataclass(frozen=True)
class VQGANRecipe(VQVAERecipe):
    """Train a VQGAN: a VQ-VAE that has to convince a critic."""

    out: Path = Path("runs/vqgan")
    loss: AutoencoderLoss = ADVERSARIAL
    codebook: Literal["nearest", "ema", "gumbel"] = "nearest"


FirstStageRecipe = PlainRecipe | VariationalRecipe | KLRecipe | VQVAERecipe  # a VQGAN is a VQ-VAE, too


@dataclass(frozen=True)
class PriorRecipe:
    """Train a prior over the codes of a VQ-VAE or a VQGAN. Run again with the same values, it goes on where it was stopped."""

    first_stage: Path  # its folder, or a published file
    data: str  # a folder of pictures, or what the program draws: shapes, emoji
    out: Path = Path("runs/prior")
    kind: Literal["transformer", "pixelcnn", "pixelsnail"] = "transformer"
    condition: Literal["none", "class", "text", "map", "coordinates"] = "none"  # "class": folders' names, or captions; of shapes, the shape
    map: Literal["semantic", "depth", "edges", "small"] = "semantic"  # with condition "map"
    maps: Path | None = None  # with a folder's semantic or depth maps: where they lie, as PNGs under the pictures' names
    map_stage: Path | None = None  # first stage of the maps; none: a small one is trained before
    resolution: int = 64  # pixels a side
    num_images: int = 20_000  # that are encoded once, and shown again every epoch; each of a folder's in ten crops at most
    eval_images: int = 1000  # pictures that the code length is measured on, at the end; each of a folder's once
    width: int = 192  # channels
    layers: int = 6
    heads: int = 6
    dropout: float = 0.0
    vocabulary: int = 640  # the most tokens that texts are made of
    max_text_tokens: int = 24  # tokens of one text, begin and end included
    pkeep: float = 1.0  # share of the codes that are read as they are; the others are replaced by random ones
    skip_bad: bool = False  # skip and count unreadable pictures instead of stopping
    loop: Annotated[LoopConfig, tyro.conf.arg(name="")] = field(default_factory=lambda: PRIOR_LOOP)

    def __post_init__(self) -> None:
        if self.kind != "transformer" and self.condition not in ("none", "class"):
            raise DaguerreError(f"A {self.kind} is told nothing or a class, not {self.condition}; take --kind transformer.")
        if self.heads < 1 or self.layers < 1 or self.width % self.heads:
            raise DaguerreError(
                f"{self.layers} layers of width {self.width} with {self.heads} heads cannot be: the heads must divide the width."
            )
        if self.num_images < self.loop.batch_size or self.eval_images < 1:
            raise DaguerreError(
                f"{self.num_images} pictures, with {self.eval_images} to measure, are too few; train on {self.loop.batch_size} or more, "
                "and measure on one or more."
            )
        if self.condition != "map" and (self.maps or self.map_stage):
            raise DaguerreError("--maps and --map-stage say something with --condition map alone; leave them out, or ask for that.")

    @property
    def network(self) -> dict[str, object]:
        """What decides the trained weights, beside data, first stage and loop."""
        names = (
            "kind",
            "condition",
            "map",
            "resolution",
            "num_images",
            "width",
            "layers",
            "heads",
            "dropout",
            "vocabulary",
            "max_text_tokens",
            "pkeep",
        )
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class DecoderRecipe:
    """Train on the decoder alone of a model's autoencoder; what it encodes stays as it is."""

    data: str  # a folder of pictures, or what the program draws: shapes, emoji
    model: str | None = None  # the folder of a model or of a first stage, or a file that holds one; none: the embedded model
    out: Path = Path("runs/decoder")
    resolution: int = 64  # pixels a side
    perceptual: tuple[Path, ...] = ()  # one or two files with LPIPS's weights, or the folder of a CLIP or an autoencoder
    weight: float = 0.1  # of the perceptual distance, beside the squared error
    skip_bad: bool = False  # skip and count unreadable pictures instead of stopping
    loop: Annotated[LoopConfig, tyro.conf.arg(name="")] = field(
        default_factory=lambda: LoopConfig(max_train_steps=1000, batch_size=8, learning_rate=1e-4, ema_decay=0.99, sample_every=250)
    )
