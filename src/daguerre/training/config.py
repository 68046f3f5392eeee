"""Settings of the training loop and of the losses, as plain values. Nothing here imports torch, so that `--help` stays instant."""

import os
from dataclasses import dataclass, replace
from math import ceil, cos, inf, pi
from typing import Annotated, Any, Literal

import tyro

from daguerre.errors import DaguerreError

MIN_PRODIGY_RATE = 0.1  # lower ones are meant for another optimizer


def optional(metavar: str) -> Any:
    """Annotation of an option whose help text states the default itself."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass(frozen=True)
class LoopConfig:
    """Length, batch size, optimizer, precision and logging of one training."""

    max_train_steps: int = 1000  # Total number of optimizer steps.
    # Number of passes over a directory of images; sets the number of steps, instead of --max-train-steps.
    num_train_epochs: Annotated[float | None, optional("FLOAT")] = None
    batch_size: int = 64  # Images per optimizer step, summed over all processes and accumulated parts.
    # Number of parts that each batch is split into to save memory; auto is the smallest that fits, found by trying one and two images.
    gradient_accumulation_steps: int | Literal["auto"] = 1
    gradient_checkpointing: bool = False  # Recompute the activations of each block in the backward pass: less memory, a third slower.
    # AdamW; AdamW with moments of 8 bits, on a GPU; Adafactor, which needs almost no memory of its own; or Prodigy, which finds the
    # learning rate itself.
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "prodigy"] = "adamw"
    learning_rate: float = 1e-4  # Peak learning rate; with Prodigy, a factor of the rate that it finds, usually 1.
    # What the learning rate does after the warm-up: it stays, falls over the whole run along a line or half a cosine, or falls at the end.
    lr_scheduler: Literal["constant", "linear", "cosine", "warmup_stable_decay"] = "warmup_stable_decay"
    lr_warmup_steps: int = 100  # Number of steps over which the learning rate rises linearly from 0.
    lr_decay: float = 0.2  # With warmup_stable_decay: share of the run, at its end, over which the learning rate falls linearly to 0.
    betas: tuple[float, float] = (0.9, 0.99)  # Decay rates of the moment estimates of AdamW and Prodigy.
    weight_decay: float = 0.01  # Decoupled weight decay; biases and norms are exempt.
    max_grad_norm: float = 1.0  # Gradients are scaled down to this norm; 0 disables clipping.
    ema_decay: float = 0.999  # Decay of the exponential moving average of the weights; 0 disables it.
    # Precision of autocast; auto is bf16 where the hardware supports it, else no.
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "no"
    compile: bool = False  # Compile the networks with torch.compile; on a CPU this needs a C++ compiler.
    # With fsdp each process of a launcher keeps only its share of the weights, gradients, moments and averages of the network.
    sharding: Literal["none", "fsdp"] = "none"
    cpu_offload: bool = False  # With fsdp, keep the shares and the optimizer in the CPU's memory: less memory of a GPU, slower.
    workers: int = 1  # Number of workers that prepare batches: 1 is a thread, 2 or more are processes.
    seed: int = 0  # Seed of the initial weights, the data order and the noise.
    log_every: int = 20  # Number of steps between log lines, which have the mean losses since the last one.
    sample_every: int = 500  # Number of steps between sample images; 0 disables them.
    checkpoint_every: int = 500  # Number of steps between checkpoints.
    validation_every: int = 200  # Number of steps between losses of the validation images, if there are any.

    def __post_init__(self) -> None:
        for name in ("max_train_steps", "batch_size", "gradient_accumulation_steps", "log_every", "checkpoint_every", "validation_every"):
            if (value := getattr(self, name)) != "auto" and value < 1:
                raise DaguerreError(f"{name} is {value}; it must be 1 or more.")
        for name in ("learning_rate", "lr_warmup_steps", "weight_decay", "max_grad_norm", "sample_every", "workers", "seed"):
            if not 0 <= getattr(self, name) < inf:
                raise DaguerreError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.optimizer == "prodigy" and self.learning_rate < MIN_PRODIGY_RATE:
            raise DaguerreError(
                f"learning_rate is {self.learning_rate:g}, but Prodigy finds the rate itself and multiplies it by this factor; use "
                "--learning-rate 1."
            )
        if self.num_train_epochs is not None and not 0 < self.num_train_epochs < inf:
            raise DaguerreError(f"num_train_epochs is {self.num_train_epochs:g}; it must be above 0, such as 10.")
        shares = {"lr_decay": self.lr_decay, "ema_decay": self.ema_decay, "betas[0]": self.betas[0], "betas[1]": self.betas[1]}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise DaguerreError(f"{name} is {share}; it must be between 0 and 1.")
        if self.sharding == "fsdp":
            self._check_sharding()
        elif self.cpu_offload:
            raise DaguerreError("--cpu-offload is for sharded networks; add --sharding fsdp.")
        if self.batch_size % self.parts:
            raise DaguerreError(f"batch_size {self.batch_size} is not a multiple of gradient_accumulation_steps {self.parts}.")

    @property
    def parts(self) -> int:
        """The number of parts of a batch; 1 as long as it is not known."""
        return 1 if self.gradient_accumulation_steps == "auto" else self.gradient_accumulation_steps

    def _check_sharding(self) -> None:
        options = {
            f"--optimizer {self.optimizer}": self.optimizer != "adamw",
            "--compile": self.compile,
            "--mixed-precision fp16": self.mixed_precision == "fp16",
            "--gradient-accumulation-steps auto": self.gradient_accumulation_steps == "auto",
        }
        if given := [name for name, is_given in options.items() if is_given]:
            raise DaguerreError(f"--sharding fsdp does not work with {given[0]}; leave out one of the two.")
        if "RANK" not in os.environ:
            raise DaguerreError(
                "--sharding fsdp needs a launcher that starts the processes, such as torchrun --standalone --nproc-per-node 2 -m daguerre "
                "train ldm."
            )

    @property
    def known_steps(self) -> float:
        """The number of steps; infinite as long as the number of images, which sets it, is unknown."""
        return self.max_train_steps if self.num_train_epochs is None else inf

    def for_images(self, count: int) -> "LoopConfig":
        """The settings with the number of steps that `num_train_epochs` passes over `count` images take, rounded up."""
        if self.num_train_epochs is None:
            return self
        return replace(self, max_train_steps=ceil(self.num_train_epochs * count / self.batch_size), num_train_epochs=None)

    def rate(self, step: int) -> float:
        """The learning rate of step `step`: it rises in the warm-up, then does what `lr_scheduler` says."""
        warmup = (step + 1) / max(self.lr_warmup_steps, 1)
        left = self.max_train_steps - step
        share = min(left / max(self.max_train_steps - self.lr_warmup_steps, 1), 1.0)  # of the steps after the warm-up
        match self.lr_scheduler:
            case "constant":
                fall = 1.0
            case "linear":
                fall = share
            case "cosine":
                fall = (1 - cos(pi * share)) / 2
            case "warmup_stable_decay":
                fall = left / max(self.lr_decay * self.max_train_steps, 1)
        return self.learning_rate * min(1.0, warmup, fall)


@dataclass(frozen=True)
class AutoencoderLoss:
    """Weights of the autoencoder's loss terms. The adversarial ones apply only with a discriminator."""

    l1_weight: float = 1.0  # Weight of the absolute error.
    l2_weight: float = 1.0  # Weight of the squared error.
    gradient_weight: float = 1.0  # Weight of the absolute error of finite differences, which keeps outlines sharp.
    perceptual_weight: float = 0.0  # Weight of the perceptual distance; the default is 1 if --perceptual is given.
    kl_weight: float = 1e-4  # Weight of the KL divergence between the latent and a unit Gaussian.
    equivariance: float = 0.0  # Share of the batches whose latent is scaled or rotated.
    adversarial_weight: float = 0.0  # Weight of the generator loss, multiplied by the adaptive weight.
    adversarial_start: int = 10_000  # Step at which the discriminator starts.
    adversarial_ramp: int = 1_000  # Number of steps over which the generator loss rises linearly to its full weight.
    max_adaptive_weight: float = 1e4  # Upper bound of the adaptive weight.


@dataclass(frozen=True)
class DiffusionLoss:
    """How timesteps are sampled and weighted."""

    timestep_sampling: Literal["uniform", "logit_normal"] = "uniform"  # Distribution of the timesteps.
    shift: float = 1.0  # Timestep shift s: u becomes s·u / (1 + (s − 1)·u); above 1 there is more noise.
    snr_gamma: Annotated[float | None, optional("FLOAT")] = (
        None  # Gamma of min-SNR loss weighting (5 in the paper); by default all timesteps weigh the same.
    )
    weight_floor: float = 0.05  # Smallest min-SNR weight (0 in the paper): zero terminal SNR needs training at pure noise.
    caption_dropout: float = 0.1  # Share of captions replaced by the empty one, for classifier-free guidance.
