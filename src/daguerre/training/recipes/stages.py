"""The stages that every latent diffusion recipe walks: autoencoder → CLIP → diffusion → one folder that any of the field's tools opens.

Each stage works in a folder of its own under the recipe's, so a run that was stopped anywhere goes on from there; a stage that is done is
read back instead of trained.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from daguerre.atomic_io import atomic_path
from daguerre.conditioning import Conditioner, Tokenizer, train_tokenizer
from daguerre.data import BatchLoader, Dataset
from daguerre.diffusion import Schedule, ScheduleConfig
from daguerre.errors import DaguerreError
from daguerre.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from daguerre.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.models.patch_discriminator import PatchDiscriminator, PatchDiscriminatorConfig
from daguerre.models.unet import UNet, UNetConfig
from daguerre.models.vq_model import VQModel
from daguerre.nn.meta import shapes_only
from daguerre.training.datasets.latents import CachedLatents, cache_latents
from daguerre.training.loop import LoopConfig, fingerprint, train, weights_key
from daguerre.training.objectives.attention_grounding import Grounding, coverage
from daguerre.training.objectives.autoencoder import AutoencoderLoss, AutoencoderTask
from daguerre.training.objectives.clip import ContrastiveTask
from daguerre.training.objectives.diffusion import DiffusionLoss, DiffusionTask
from daguerre.training.processes import main_process_first

F = TypeVar("F", bound=AutoencoderKL | VQModel)


@dataclass(frozen=True)
class AutoencoderPlan:
    """The first stage."""

    model: AutoencoderKLConfig
    loop: LoopConfig
    loss: AutoencoderLoss = AutoencoderLoss()
    discriminator: PatchDiscriminatorConfig | None = None


@dataclass(frozen=True)
class ClipPlan:
    """The second stage: its text tower becomes the model's text encoder."""

    text: CLIPTextConfig  # vocab_size is the most the tokenizer may learn
    vision: CLIPVisionConfig
    loop: LoopConfig
    repeats: int = 4  # pictures of one thing in a batch: they teach the words around it


@dataclass(frozen=True)
class DiffusionPlan:
    """The last stage."""

    unet: UNetConfig
    loop: LoopConfig
    loss: DiffusionLoss = DiffusionLoss()
    schedule: ScheduleConfig = ScheduleConfig(zero_terminal_snr=True)
    cached_samples: int = 50_000  # samples encoded once and shown again every epoch
    trains_text: bool = False  # the text encoder learns on with the UNet
    grounding: float = 0.0  # weight of the loss that keeps attention to a noun on its thing; only of drawn shapes is it known where that is
    guidance: float = LatentDiffusion.default_guidance  # the finished model's own


@dataclass(frozen=True)
class LatentDiffusionPlan:
    """All three, for pictures of `size` pixels a side.

    Where two things stand is said by the order of their names and the word between them together, and by neither alone, so that a model may
    heed neither for very long. A lesson at the start of the last stage keeps to one order (Bengio et al. 2009, Curriculum Learning).
    """

    size: int
    autoencoder: AutoencoderPlan
    clip: ClipPlan
    diffusion: DiffusionPlan
    curriculum: float = 0.0  # its share of the last stage's steps and samples; a model that is trained on needs none


def train_autoencoder(plan: AutoencoderPlan, source: Dataset, size: int, seed: int, out: Path) -> AutoencoderKL:
    """Train the autoencoder, then measure the mean and spread of its latents, which become shift and scaling factor."""
    torch.manual_seed(seed)
    autoencoder = AutoencoderKL(plan.model)
    critic = PatchDiscriminator(plan.discriminator) if plan.discriminator else None
    batches = BatchLoader(source, plan.loop.batch_size, seed, size)
    shown = BatchLoader(source, 8, seed + 1, size).batch(0).x
    stage = AutoencoderTask(autoencoder, plan.loss, shown, discriminator=critic)
    identity = {"model": asdict(plan.model), "loss": asdict(plan.loss), "data": source.key, "size": size, "seed": seed}
    train(stage, batches, plan.loop, out, recipe=identity)
    return with_measured_scale(autoencoder, BatchLoader(source, 256, seed + 2, size).batch(0).x)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # for a few batches
def with_measured_scale(first_stage: F, x: Tensor) -> F:
    """The same weights, whose scaled latents have variance 1 over the pictures x (B, 3, H, W), and mean 0 where the config has a shift."""
    device = next(first_stage.parameters()).device
    z = torch.cat([_unscaled(first_stage, part.to(device)) for part in x.split(32)])
    measured = {"scaling_factor": round(1 / z.std().item(), 5)}
    if isinstance(first_stage, AutoencoderKL):
        measured["shift_factor"] = round(z.mean().item(), 5)
    with shapes_only():
        scaled = type(first_stage)(replace(first_stage.config, **measured))  # pyright: ignore[reportArgumentType]
    scaled.load_state_dict(first_stage.state_dict(), strict=True, assign=True)
    return scaled.eval()


def _unscaled(first_stage: AutoencoderKL | VQModel, x: Tensor) -> Tensor:
    if isinstance(first_stage, AutoencoderKL):
        return first_stage.posterior(x).mean
    return first_stage.encode(x) / first_stage.config.scaling_factor


def train_clip(plan: ClipPlan, source: Dataset, size: int, seed: int, out: Path) -> tuple[CLIP, Tokenizer]:
    """Learn a vocabulary from the source's captions, then both towers."""
    tokenizer = learned_tokenizer(source, plan.text.vocab_size, plan.text.length, seed, out / "tokenizer")
    torch.manual_seed(seed)
    text = replace(plan.text, vocab_size=len(tokenizer), eos=tokenizer.eos)
    clip = CLIP(CLIPConfig(text=text, vision=plan.vision))
    batches = BatchLoader(source, plan.loop.batch_size, seed, size, repeats=plan.repeats)
    identity = {"text": asdict(text), "vision": asdict(plan.vision), "data": source.key, "size": size, "seed": seed}
    train(ContrastiveTask(clip, tokenizer), batches, plan.loop, out, recipe=identity)
    return clip, tokenizer


def learned_tokenizer(source: Dataset, vocab_size: int, length: int, seed: int, folder: Path, captions: int = 40_000) -> Tokenizer:
    """The tokenizer in `folder`, or one of at most `vocab_size` tokens learned from `captions` of the source's captions and kept there."""

    def learn() -> Tokenizer:
        if not (folder / "vocab.json").is_file():
            with atomic_path(folder) as beside:
                train_tokenizer(source.captions(captions, seed), vocab_size, length).save(beside)
        return Tokenizer.from_folder(folder)

    return main_process_first(learn)


def init_model(
    plan: DiffusionPlan, autoencoder: AutoencoderKL, conditioner: Conditioner, size: int, seed: int, name: str
) -> LatentDiffusion:
    """A model whose UNet knows nothing yet."""
    torch.manual_seed(seed)
    return LatentDiffusion(UNet(plan.unet), autoencoder, conditioner, Schedule(plan.schedule), "v", name, size, plan.guidance)


def train_diffusion(plan: DiffusionPlan, model: LatentDiffusion, source: Dataset, seed: int, out: Path, shown: Sequence[str]) -> None:
    """Train the UNet of `model`, and its text encoder where the plan says so, on cached latents of its autoencoder, which stays."""
    autoencoder, conditioner = trained_parts(model)
    encoded = {"data": source.key, "size": model.sample_size, "seed": seed, "autoencoder": weights_key(autoencoder)}
    drawn = BatchLoader(source, 64, seed + 3, model.sample_size)
    latents, captions = cache_latents(drawn, autoencoder, plan.cached_samples, out / "cache", fingerprint(encoded), plan.loop.workers)
    learned = {"unet": asdict(model.unet.config), "loss": asdict(plan.loss), "schedule": asdict(model.schedule.config)}
    identity = encoded | learned | {"pool": plan.cached_samples, "text": weights_key(conditioner)}
    text = conditioner.requires_grad_(True) if plan.trains_text else None
    grounding, covered = None, None
    if plan.grounding:
        identity["grounding"] = plan.grounding
        grounding, covered = Grounding(plan.grounding, conditioner), coverage(drawn, source, len(captions), latents.shape[-1])
    stage = DiffusionTask(model, plan.loss, conditioner.encode_captions, shown, text=text, grounding=grounding)
    train(stage, CachedLatents(latents, captions, plan.loop.batch_size, seed, covered), plan.loop, out, recipe=identity)


def trained_parts(model: LatentDiffusion) -> tuple[AutoencoderKL, Conditioner]:
    """The parts around the UNet, frozen. Raises DaguerreError for a model that lacks one."""
    autoencoder, conditioner = model.autoencoder, model.conditioner
    if not isinstance(autoencoder, AutoencoderKL) or not isinstance(conditioner, Conditioner):
        raise DaguerreError(f"{model.name} lacks an autoencoder or a text encoder; training its UNet needs both.")
    return autoencoder.requires_grad_(False), conditioner.requires_grad_(False)


def tiny_text(vocab_size: int, width: int, layers: int, length: int = 32) -> CLIPTextConfig:
    """A text tower with heads of width 64 and a projection of its own width."""
    return CLIPTextConfig(vocab_size, length, width, layers, width // 64, 4 * width, "gelu", projection=width)


def tiny_vision(size: int, patch: int, width: int, layers: int, projection: int) -> CLIPVisionConfig:
    """A vision tower with heads of width 64."""
    return CLIPVisionConfig(size, patch, 3, width, layers, width // 64, 4 * width, "gelu", projection=projection)
