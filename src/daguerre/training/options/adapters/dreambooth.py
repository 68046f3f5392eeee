"""Options of `daguerre train dreambooth`. No torch."""

import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Annotated

import tyro

from daguerre.errors import DaguerreError
from daguerre.training.config import LoopConfig, optional
from daguerre.training.options.adapters.lora import LoraOptions, LoraRecipe

ARTICLES = ("a", "an", "the")
MAX_FULL_RATE = 5e-4  # a higher learning rate is meant for a LoRA: it destroys a whole UNet


def dreambooth_lora() -> LoraOptions:
    """The LoRA of a thing needs more than attention: every layer of the UNet, and the text encoder, which learns the word."""
    return LoraOptions(rank=16, modules=".", train_text_encoder=True)


@dataclass(frozen=True, kw_only=True)
class DreamBoothRecipe(LoraRecipe):
    """Teach a model one thing, animal or character from 3 to 10 images of it, under a word of its own (DreamBooth).

    The result is a LoRA, or with --full a whole model. Images without a caption get the instance prompt. The same command resumes an
    interrupted run.
    """

    instance_prompt: str  # Caption of the images: the new word, and what it is, such as "a zorble alien".
    # With prior preservation: one or several captions without the new word, such as "an alien", whose images must stay as they are.
    class_prompt: tuple[str, ...] = ()
    num_class_images: int = 48  # Number of images that the model generates of the class prompts before training.
    # Directory of the images of the class prompts; those that are there are used. Default: OUT/class-images.
    class_data: Annotated[Path | None, optional("PATH")] = None
    prior_loss_weight: float = 1.0  # Weight of the loss of the images of the class prompts.
    full: bool = False  # Train the whole UNet instead of a LoRA; it needs a lower learning rate, such as 2e-5.
    out: Path = Path("runs/dreambooth")  # Directory for checkpoints, logs and the finished LoRA, whose file has the directory's name.
    lora: tyro.conf.OmitArgPrefixes[LoraOptions] = field(default_factory=dreambooth_lora)
    loop: tyro.conf.OmitArgPrefixes[LoopConfig] = field(
        default_factory=lambda: LoopConfig(
            max_train_steps=400, batch_size=4, learning_rate=1e-3, lr_warmup_steps=20, ema_decay=0, mixed_precision="auto"
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.new_words:
            raise DaguerreError(
                f"instance_prompt is {self.instance_prompt!r}, which has no word that the class prompts lack; add one that the model "
                "does not know, such as 'a zorble alien' next to the class prompt 'an alien'."
            )
        if not all(prompt.strip() for prompt in self.class_prompt):
            raise DaguerreError("A class_prompt is empty; write what the images without the new word show, such as 'an alien'.")
        if self.num_class_images < 1:
            raise DaguerreError(f"num_class_images is {self.num_class_images}; it must be 1 or more.")
        if not 0 <= self.prior_loss_weight < inf:
            raise DaguerreError(f"prior_loss_weight is {self.prior_loss_weight}; it must be 0 or more.")
        if self.full and self.lora != dreambooth_lora():
            raise DaguerreError("--full trains the whole UNet, without a LoRA; remove the options of the LoRA, such as --rank.")
        if self.full and self.loop.optimizer != "prodigy" and self.loop.learning_rate > MAX_FULL_RATE:
            raise DaguerreError(
                f"learning_rate is {self.loop.learning_rate:g}, which is for a LoRA; with --full use --learning-rate 2e-5, at most "
                f"{MAX_FULL_RATE:g}."
            )

    @property
    def new_words(self) -> tuple[str, ...]:
        """The words of the instance prompt that no class prompt has, in small letters, without articles."""
        known = {*ARTICLES, *(word for prompt in self.class_prompt for word in words_of(prompt))}
        return tuple(word for word in words_of(self.instance_prompt) if word not in known)


def words_of(text: str) -> list[str]:
    """The words of a text in small letters, without punctuation around them."""
    return re.findall(r"\w[\w'-]*", text.lower())
