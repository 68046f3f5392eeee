"""Textual inversion: only the vectors of a new word are trained, in front of a frozen text encoder and a frozen UNet.

    v* = argmin E ‖F(x_t, t, c(y(v))) − target‖²,   y a caption template with the word      (Gal et al. 2022, arXiv:2208.01618, equation 2)

The vectors replace the rows of the token embedding while a caption is encoded, so no other row ever changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from daguerre.adapters import with_adapters
from daguerre.adapters.attach import TOKEN_EMBEDDING, text_encoders_of
from daguerre.adapters.embedding import Embedding, embedding_of
from daguerre.conditioning import SDXLConditioner, TextConditioner
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.training.batch_random import BatchRandom
from daguerre.training.config import DiffusionLoss
from daguerre.training.objectives.adapters.frozen_model import AdaptedModel, AdapterTask

WORD, CAPTION = "{}", "[filewords]"  # in templates: the new word, and the image's caption
# Captions of the paper's code, for things and for styles.
_VIEWS = ("a photo of", "a rendering of", "a cropped photo of", "a close-up photo of", "a bright photo of")
_STYLES = ("painting", "rendering", "cropped painting", "picture", "close-up painting", "large painting")
OBJECT_TEMPLATES = tuple(f"{view} {article} {WORD}" for view in _VIEWS for article in ("a", "the", "one", "my"))
STYLE_TEMPLATES = tuple(f"a {kind} in the style of {WORD}" for kind in _STYLES)


class WordVectors(AdaptedModel):
    """The trained vectors of a new word, (n, d) float32 for each text encoder, by its width d."""

    def __init__(self, model: LatentDiffusion, embedding: Embedding):
        """embedding: the word with its first vectors.

        Raises:
            DaguerreError: the model has the word already.
        """
        super().__init__(with_adapters(model, [embedding]), cached=False)
        self.word = embedding.word
        self.vectors = nn.ParameterDict({str(width): vectors.float().clone() for width, vectors in embedding.vectors.items()})

    @contextmanager
    def attached(self) -> Iterator[None]:
        with ExitStack() as stack:
            for encoder in text_encoders_of(self.model).values():
                layer, vectors = encoder.get_submodule(TOKEN_EMBEDDING), self.vectors[str(encoder.config.width)]
                assert isinstance(layer, nn.Embedding)
                hook = partial(_with_vectors, vectors, layer.num_embeddings - len(vectors))
                stack.callback(layer.register_forward_hook(hook).remove)
            yield

    @property
    def value(self) -> Embedding:
        """The embedding as it is now, on the same memory."""
        return embedding_of(self.word, {width: vectors.detach() for width, vectors in self.vectors.items()}, self.word)


def _with_vectors(vectors: Tensor, first: int, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """The token embeddings (B, L, d) with the vectors at the positions of the ids `first`, first + 1, …"""
    rows = inputs[0] - first
    return torch.where((rows >= 0)[..., None], vectors[rows.clamp(min=0)].to(output.dtype), output)


def first_vectors(model: LatentDiffusion, word: str, count: int, initial: str | None) -> Embedding:
    """The vectors from which training starts: those of the words `initial`, repeated; without, random ones like the known words'.

    Raises:
        DaguerreError: the model has no CLIP text encoder or knows the word, or `initial` has no vectors, or more than `count`.
    """
    conditioner, found = model.conditioner, {}
    towers = conditioner.towers if isinstance(conditioner, SDXLConditioner) else [conditioner]
    for tower in towers:
        if not isinstance(tower, TextConditioner):
            raise DaguerreError(f"{model.name} has no CLIP text encoder; textual inversion needs one.")
        if len(tower.tokenizer.encode(word)) == 1:
            raise DaguerreError(
                f"{model.name} knows the word {word!r} already, and prompts with it would change; use another, such as my{word}."
            )
        table = tower.encoder.get_submodule(TOKEN_EMBEDDING).weight.detach().float()  # pyright: ignore[reportCallIssue]
        if initial is None:
            start = table.mean(0) + table.std(0) * torch.randn(count, table.shape[1])
        else:
            ids = tower.tokenizer.encode(initial)
            if not 1 <= len(ids) <= count:
                raise DaguerreError(
                    f"The initial word {initial!r} has {len(ids)} tokens in this model, and --num-vectors is {count}; use a shorter word, "
                    f"or --num-vectors {max(len(ids), 1)}."
                )
            start = table[[ids[index % len(ids)] for index in range(count)]]
        found[str(table.shape[1])] = start
    return embedding_of(word, found, word)


class TextualInversionTask(AdapterTask):
    """Trains the vectors of a word."""

    name = "textual-inversion"

    def __init__(self, network: WordVectors, weights: DiffusionLoss, templates: Sequence[str]):
        self.word, self.templates = network.word, tuple(templates)
        super().__init__(network, weights, [filled(template, self.word, "") for template in self.templates[:8]])

    def captions(self, captions: list[str], random: BatchRandom) -> list[str]:
        chosen = random.integers(len(self.templates)).tolist()
        return [filled(self.templates[index], self.word, caption) for index, caption in zip(chosen, captions, strict=True)]


def filled(template: str, word: str, caption: str) -> str:
    """A template with the word and the caption of an image."""
    return template.replace(WORD, word).replace(CAPTION, caption).strip(" ,")
