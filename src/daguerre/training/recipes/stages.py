"""The stages of a latent diffusion recipe: autoencoder → CLIP → diffusion.

Each stage has its own directory inside the recipe's, so an interrupted run resumes where it stopped; a finished stage is loaded instead of
trained.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.conditioning import Conditioner, Tokenizer, train_tokenizer
from daguerre.data import Batch, BatchLoader, Dataset
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.models.vq_model import VQModel
from daguerre.nn.meta import shapes_only
from daguerre.training.config import AutoencoderLoss, DiffusionLoss, LoopConfig
from daguerre.training.datasets.latents import CachedLatents, cache_latents
from daguerre.training.distributed.processes import main_process_first
from daguerre.training.loop import train
from daguerre.training.objectives.attention_grounding import Grounding, coverage
from daguerre.training.objectives.autoencoder import AutoencoderTask
from daguerre.training.objectives.clip import ContrastiveTask
from daguerre.training.objectives.diffusion import DiffusionTask
from daguerre.training.plan import announce, epoch_images, print_plan
from daguerre.training.run_identity import fingerprint
from daguerre.weights.hashing import network_hash

F = TypeVar("F", bound=AutoencoderKL | VQModel)
R = TypeVar("R")


@dataclass(frozen=True)
class AutoencoderPlan:
    """The autoencoder."""

    model: AutoencoderKLConfig
    loop: LoopConfig
    loss: AutoencoderLoss = AutoencoderLoss()
    discriminator: PatchDiscriminatorConfig | None = None


@dataclass(frozen=True)
class ClipPlan:
    """CLIP, whose text tower becomes the model's text encoder."""

    text: CLIPTextConfig  # vocab_size is the upper limit for the learned tokenizer
    vision: CLIPVisionConfig
    loop: LoopConfig
    repeats: int = 4  # images of one thing per batch, so that the loss depends on the other words


@dataclass(frozen=True)
class DiffusionPlan:
    """The UNet."""

    unet: UNetConfig
    loop: LoopConfig
    loss: DiffusionLoss = DiffusionLoss()
    schedule: ScheduleConfig = ScheduleConfig(zero_terminal_snr=True)
    cached_samples: int = 50_000  # samples encoded once and used in every epoch
    trains_text: bool = False  # train the text encoder with the UNet
    grounding: float = 0.0  # weight of the attention grounding loss, for rendered shapes only
    guidance: float = LatentDiffusion.default_guidance  # the finished model's default


@dataclass(frozen=True)
class LatentDiffusionPlan:
    """All three stages, for images of `size` × `size` pixels.

    A caption states the positions of two things by the order of their names and the relation word together. Neither alone is informative,
    so a model can ignore both for long. The curriculum, at the start of the diffusion stage, has only one order (Bengio et al. 2009).
    """

    size: int
    autoencoder: AutoencoderPlan
    clip: ClipPlan
    diffusion: DiffusionPlan
    curriculum: float = 0.0  # share of the diffusion stage's steps and samples; not used for fine-tuning


def with_epochs(recipe: R, images: Dataset) -> R:
    """A recipe with an option group `loop`, whose number of epochs becomes a number of steps.

    Raises:
        DaguerreError: the images are rendered for each step, so there are no epochs; or the number of steps does not suit the recipe.
    """
    loop: LoopConfig = recipe.loop  # pyright: ignore[reportAttributeAccessIssue]
    if loop.num_train_epochs is None:
        return recipe
    if images.rendered:
        raise DaguerreError("Built-in data is rendered for each step, so it has no epochs; use --max-train-steps.")
    return replace(recipe, loop=loop.for_images(len(images)))  # pyright: ignore[reportArgumentType]


def resize_unet(config: UNetConfig, channels: Sequence[int] = (), blocks: int | None = None) -> UNetConfig:
    """A UNet config with other channels for each level and other residual blocks per level; empty or None keeps the config's own.

    Levels that the config does not have get the attention of its last one. Attention heads keep about their width.

    Raises:
        DaguerreError: the channels are not multiples of the norm groups, or there are no blocks.
    """
    channels, groups, last = tuple(channels) or config.channels, config.norm_groups, len(config.channels) - 1
    if any(width < groups or width % groups for width in channels):
        raise DaguerreError(f"unet_channels are {' '.join(map(str, channels))}; each must be a multiple of {groups}, such as {2 * groups}.")
    if blocks is not None and blocks < 1:
        raise DaguerreError(f"unet_blocks is {blocks}; it must be 1 or more.")
    like = [min(level, last) for level in range(len(channels))]  # the level of the config that each level resembles
    wanted = [width * config.heads[level] // config.channels[level] for width, level in zip(channels, like, strict=True)]
    heads = [next(n for n in range(max(most, 1), 0, -1) if width % n == 0) for width, most in zip(channels, wanted, strict=True)]
    depth = tuple(config.depth[level] for level in like)
    return replace(config, channels=channels, blocks=blocks or config.blocks, depth=depth, heads=tuple(heads))


def train_autoencoder(plan: AutoencoderPlan, source: Dataset, size: int, seed: int, out: Path) -> AutoencoderKL:
    """Train the autoencoder, then set its shift and scaling factor from the mean and standard deviation of its latents."""
    torch.manual_seed(seed)
    autoencoder = AutoencoderKL(plan.model)
    discriminator = PatchDiscriminator(plan.discriminator) if plan.discriminator else None
    batches = BatchLoader(source, plan.loop.batch_size, seed, size)
    preview = BatchLoader(source, 8, seed + 1, size).batch(0).x
    task = AutoencoderTask(autoencoder, plan.loss, preview, discriminator=discriminator)
    identity = {"model": asdict(plan.model), "loss": asdict(plan.loss), "data": source.key, "size": size, "seed": seed}
    print_plan(task.networks, plan.loop, out, images=epoch_images(source))
    train(task, batches, plan.loop, out, recipe=identity)
    return with_measured_scale(autoencoder, BatchLoader(source, 256, seed + 2, size).batch(0).x)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # for a few batches
def with_measured_scale(first_stage: F, x: Tensor) -> F:
    """The same weights with a scaling factor (and shift) that gives latents of the images x (B, 3, H, W) variance 1 (and mean 0)."""
    device = next(first_stage.parameters()).device
    z = torch.cat([_unscaled_latents(first_stage, part.to(device)) for part in x.split(32)])
    measured = {"scaling_factor": round(1 / z.std().item(), 5)}
    if isinstance(first_stage, AutoencoderKL):
        measured["shift_factor"] = round(z.mean().item(), 5)
    with shapes_only():
        scaled = type(first_stage)(replace(first_stage.config, **measured))  # pyright: ignore[reportArgumentType]
    scaled.load_state_dict(first_stage.state_dict(), strict=True, assign=True)
    return scaled.eval()


def _unscaled_latents(first_stage: AutoencoderKL | VQModel, x: Tensor) -> Tensor:
    if isinstance(first_stage, AutoencoderKL):
        return first_stage.posterior(x).mean
    return first_stage.encode(x) / first_stage.config.scaling_factor


def train_clip(
    plan: ClipPlan, source: Dataset, size: int, seed: int, out: Path, validation: Iterable[Batch] = ()
) -> tuple[CLIP, Tokenizer]:
    """Train a tokenizer on the dataset's captions, then both towers."""
    tokenizer = learned_tokenizer(source, plan.text.vocab_size, plan.text.length, seed, out / "tokenizer")
    torch.manual_seed(seed)
    text = replace(plan.text, vocab_size=len(tokenizer), eos=tokenizer.eos)
    clip = CLIP(CLIPConfig(text=text, vision=plan.vision))
    batches = BatchLoader(source, plan.loop.batch_size, seed, size, repeats=plan.repeats)
    identity = {"text": asdict(text), "vision": asdict(plan.vision), "data": source.key, "size": size, "seed": seed}
    print_plan({"CLIP": clip}, plan.loop, out, images=epoch_images(source))
    train(ContrastiveTask(clip, tokenizer), batches, plan.loop, out, recipe=identity, validation=validation)
    return clip, tokenizer


def learned_tokenizer(source: Dataset, vocab_size: int, length: int, seed: int, folder: Path, captions: int = 40_000) -> Tokenizer:
    """The tokenizer in `folder`; if there is none, train one with at most `vocab_size` tokens on that many `captions` and save it."""

    def load_or_train() -> Tokenizer:
        if not (folder / "vocab.json").is_file():
            announce(f"extra stage: a tokenizer with at most {vocab_size} tokens, from the captions, in {folder}")
            with atomic_path(folder) as temporary:
                train_tokenizer(source.captions(captions, seed), vocab_size, length).save(temporary)
        return Tokenizer.from_folder(folder)

    return main_process_first(load_or_train)


def init_model(
    plan: DiffusionPlan, autoencoder: AutoencoderKL, conditioner: Conditioner, size: int, seed: int, name: str
) -> LatentDiffusion:
    """A model with a randomly initialised UNet."""
    torch.manual_seed(seed)
    return LatentDiffusion(UNet(plan.unet), autoencoder, conditioner, Schedule(plan.schedule), "v", name, size, plan.guidance)


def train_diffusion(plan: DiffusionPlan, model: LatentDiffusion, source: Dataset, seed: int, out: Path, prompts: Sequence[str]) -> None:
    """Train the UNet of `model`, and its text encoder if the plan has `trains_text`, on cached latents. `prompts`: of the sample grid."""
    autoencoder, conditioner = trained_parts(model)
    encoded = {"data": source.key, "size": model.sample_size, "seed": seed, "autoencoder": network_hash(autoencoder)}
    batches = BatchLoader(source, 64, seed + 3, model.sample_size)
    latents, captions = cache_latents(batches, autoencoder, plan.cached_samples, out / "cache", fingerprint(encoded), plan.loop.workers)
    learned = {"unet": asdict(model.unet.config), "loss": asdict(plan.loss), "schedule": asdict(model.schedule.config)}
    identity = encoded | learned | {"cached_samples": plan.cached_samples, "text": network_hash(conditioner)}
    text = conditioner.requires_grad_(True) if plan.trains_text else None
    grounding, object_shares = None, None
    if plan.grounding:
        identity["grounding"] = plan.grounding
        grounding, object_shares = Grounding(plan.grounding, conditioner), coverage(batches, source, len(captions), latents[0].shape[-1])
    task = DiffusionTask(model, plan.loss, conditioner.encode_captions, prompts, trained_text=text, grounding=grounding)
    print_plan({"UNet": task.networks["unet"]}, plan.loop, out, images=None, cache_bytes=latents.nbytes)
    train(task, CachedLatents(latents, captions, plan.loop.batch_size, seed, object_shares), plan.loop, out, recipe=identity)


def trained_parts(model: LatentDiffusion) -> tuple[AutoencoderKL, Conditioner]:
    """The frozen autoencoder and conditioner. Raises DaguerreError if the model lacks one."""
    autoencoder, conditioner = model.autoencoder, model.conditioner
    if not isinstance(autoencoder, AutoencoderKL) or not isinstance(conditioner, Conditioner):
        raise DaguerreError(f"{model.name} has no autoencoder or no text encoder; training its UNet needs both.")
    return autoencoder.requires_grad_(False), conditioner.requires_grad_(False)


def require_text_to_image(model: LatentDiffusion, purpose: str) -> None:
    """Raise DaguerreError if the UNet has inputs besides latents and text. purpose: what to do with another model, for the message."""
    if model.unet.config.in_channels != model.latent_channels:
        raise DaguerreError(f"{model.name} has more inputs than text; {purpose} the text-to-image model of its family.")


def tiny_text(vocab_size: int, width: int, layers: int, length: int = 32) -> CLIPTextConfig:
    """A text tower with heads of 64 channels and a projection to its own width."""
    return CLIPTextConfig(vocab_size, length, width, layers, width // 64, 4 * width, "gelu", projection=width)


def tiny_vision(size: int, patch: int, width: int, layers: int, projection: int) -> CLIPVisionConfig:
    """A vision tower with heads of 64 channels."""
    return CLIPVisionConfig(size, patch, 3, width, layers, width // 64, 4 * width, "gelu", projection=projection)
