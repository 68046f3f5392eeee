"""The models that a server offers: the embedded ones, the one it was started with, and those in its folder."""

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from daguerre.adapters.lora.lora import CONTEXT_FAMILIES
from daguerre.errors import DaguerreError, nearest
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.capabilities import model_task, possible_tasks
from daguerre.server.errors import ApiError
from daguerre.weights import catalog
from daguerre.weights.catalog import CHECKPOINTS, INDEX, embedded, may_be_on_the_hub
from daguerre.weights.vocabulary import Vocabulary

DEFAULT_FACTOR = 8  # sides are rounded to multiples of it until a model is known


@dataclass(frozen=True)
class ModelChoice:
    """A model in the list. source: what `daguerre.load` takes, which callers never see. size: bytes on the disk, 0 if unknown."""

    name: str
    source: str
    size: int
    file_name: str

    @property
    def path(self) -> Path:
        """Its file or folder, or where one of the hub would be; few-step models are recognised by it."""
        return catalog.local(self.source) or Path(self.source)


@dataclass(frozen=True)
class ModelFacts:
    """What is known about a model once it has been loaded.

    sample_size: the side of its own images in pixels. factor: both sides of an image are multiples of it. tasks: those it can do.
    hash: SHA-256 of its files. family: by the width of its text states.
    """

    sample_size: int
    factor: int
    default_guidance: float
    tasks: tuple[str, ...]
    task: str | None
    hash: str | None
    family: str | None

    @classmethod
    def of(cls, model: LatentDiffusion) -> "ModelFacts":
        from daguerre.weights.hashing import files_hash

        kind, tasks = model_task(model), possible_tasks(model)
        digest = files_hash(model.files) if model.files else None
        family = CONTEXT_FAMILIES.get(model.unet.config.context_width or 0)
        return cls(model.sample_size, model.autoencoder.downsample_factor, model.default_guidance, tasks, kind, digest, family)


class ModelList:
    """Names and sources, the current model, and facts about those that have been loaded.

    Args:
        source: the model that the server was started with; None is the embedded one.
        folder: where checkpoints are searched.
    """

    def __init__(self, source: str | None, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._facts: dict[str, ModelFacts] = {}
        self._embedded = embedded()
        self._started_with = None if source is None else _choice_of(source)
        self.default = self._started_with.name if self._started_with else catalog.DEFAULT

    def choices(self) -> dict[str, ModelChoice]:
        """All models by name; a changed folder is read again."""
        found = {entry.name: ModelChoice(entry.name, entry.name, entry.size, entry.name) for entry in self._embedded}
        if self._folder.is_dir():
            for path in sorted(self._folder.iterdir()):
                if path.suffix in CHECKPOINTS or (path / INDEX).is_file():
                    found.setdefault(path.stem if path.is_file() else path.name, _choice_of(str(path)))
        if self._started_with:
            found = {self._started_with.name: self._started_with, **{k: v for k, v in found.items() if k != self._started_with.name}}
        return found

    def find(self, name: str) -> ModelChoice:
        """A model by its name, its file name, its title "name.safetensors [hash]", or its hash.

        Raises:
            ApiError: there is none; names the nearest.
        """
        choices = self.choices()
        plain = name.split(" [")[0].strip()
        for choice in choices.values():
            known = self.facts(choice.name)
            hashes = {known.hash, known.hash[:10]} if known and known.hash else set()
            if plain.lower() in (choice.name.lower(), choice.file_name.lower()) or name in hashes:
                return choice
        raise ApiError(
            404,
            f"There is no model {name[:100]!r}; there are {', '.join(choices)}.{nearest(plain, choices)}",
            code="model_not_found",
            param="model",
        )

    def facts(self, name: str) -> ModelFacts | None:
        """What is known about a model; None until it has been loaded once."""
        with self._lock:
            return self._facts.get(name)

    def remember(self, name: str, model: LatentDiffusion) -> None:
        """Note the facts of a loaded model."""
        facts = ModelFacts.of(model)
        with self._lock:
            self._facts[name] = facts

    def to_json(self, choice: ModelChoice, loaded: str | None) -> dict[str, Any]:
        """What callers see of a model; parts of it are unknown until it has been loaded once."""
        facts = self.facts(choice.name)
        return {
            "name": choice.name,
            "title": choice.file_name,
            "family": family_of_model(choice) or (facts and facts.family),
            "task": facts.task if facts else None,
            "size": choice.size,
            "loaded": choice.name == loaded,
            "sample_size": facts.sample_size if facts else None,
            "default_guidance": facts.default_guidance if facts else None,
            "tasks": list(facts.tasks) if facts else [],
        }


def family_of_model(choice: ModelChoice) -> str | None:
    """The family that the header of a model's file states; None if it cannot be read."""
    path = catalog.local(choice.source)
    if path is None:
        return None
    try:
        return _family(path, path.stat().st_mtime)
    except (DaguerreError, OSError):
        return None


def vocabulary_of(choice: ModelChoice) -> Vocabulary | None:
    """The words of a model's training captions; None for a model without such a list."""
    path = catalog.local(choice.source)
    try:
        return None if path is None else Vocabulary.read(path)
    except DaguerreError:
        return None


@lru_cache(maxsize=256)
def _family(path: Path, _modified: float) -> str | None:
    from daguerre.weights.original.detect import detect
    from daguerre.weights.tensors.reader import open_tensors

    family = detect(open_tensors(path)).family
    return family.name if family else None


def _choice_of(source: str) -> ModelChoice:
    """The choice for a name, a path or an id of the hub."""
    path = None if may_be_on_the_hub(source) else catalog.find(source)
    if path is None:
        return ModelChoice(source, source, 0, source)
    if path.parent == catalog.ASSETS:
        return ModelChoice(path.name, source, _size(path), path.name)
    return ModelChoice(path.stem if path.is_file() else path.name, str(path), _size(path), path.name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
