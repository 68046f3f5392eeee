"""The adapters that a server offers: files and folders in one folder for each kind, which callers name but never by a path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from daguerre.adapters.controlnet import controlnet_family
from daguerre.adapters.embedding import load_embedding
from daguerre.adapters.lora.lora import CONTEXT_FAMILIES
from daguerre.adapters.lora.read import load_lora
from daguerre.adapters.record import AdapterRecord
from daguerre.conditioning.syntax import lora_of_tag, split_tags
from daguerre.errors import DaguerreError, nearest
from daguerre.server.errors import ApiError

ADAPTER_FOLDERS = {"lora": "loras", "embedding": "embeddings", "controlnet": "controlnets"}  # of the kinds, in a server's data folder
OFFERED_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
LORA_TAG_KINDS = ("lora", "lyco")
ADAPTER_FIELDS = ("kind", "name", "scale", "text_scale", "rank", "start", "end", "guess_mode")


class AdapterLibrary:
    """Adapters by name, in the folders `ADAPTER_FOLDERS` of a server's data."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def files(self, kind: str) -> dict[str, Path]:
        """The files of a kind by name, and the folders in the layout of diffusers; a changed folder is read again."""
        folder = self._data / ADAPTER_FOLDERS.get(kind, "none")
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in OFFERED_SUFFIXES) if folder.is_dir() else []
        folders = {path.parent: None for path in paths if (path.parent / "config.json").is_file()}
        return {
            **{path.name: path for path in folders},
            **{path.stem: path for path in reversed(paths) if path.parent not in folders},
        }

    def records(self, given: Sequence[Any], prompts: Sequence[str]) -> tuple[AdapterRecord, ...]:
        """The adapters of a request: those that it lists by name, and the LoRAs that tags in its prompt name and that are here.

        Raises:
            ApiError: a listed adapter is not here, or a value is wrong.
        """
        records = [self._record(value) for value in given]
        known = {(record.kind, record.name) for record in records}
        loras, text = self.files("lora"), " ".join(prompts)
        tagged = [lora for lora in _tagged_loras(prompts) if lora.name in loras and ("lora", lora.name) not in known]
        records += [replace(lora, path=str(loras[lora.name])) for lora in tagged]
        named = {name: path for name, path in self.files("embedding").items() if name in text and ("embedding", name) not in known}
        records += [AdapterRecord("embedding", name, str(path)) for name, path in named.items()]
        return tuple(records)

    def find(self, kind: str, name: str) -> Path:
        """The file of an adapter. Raises ApiError if there is none; names the nearest."""
        files = self.files(kind)
        if name not in files:
            message = f"There is no {kind} {name[:100]!r} here.{nearest(name, files)}"
            raise ApiError(404, message, code="adapter_not_found", param="adapters")
        return files[name]

    def notes(self, prompts: Sequence[str]) -> list[str]:
        """A warning for each LoRA that a tag names and that is not here."""
        files = self.files("lora")
        missing = [lora.name for lora in _tagged_loras(prompts) if lora.name not in files]
        return [f"The LoRA {name[:100]!r} of the prompt is not here and was ignored.{nearest(name, files)}" for name in missing]

    def listing(self, family: str | None) -> dict[str, list[dict[str, Any]]]:
        """All adapters for callers; `fits` is whether one is for a model of the family, None if that is not known."""
        return {
            folder: [_described(name, family_of_adapter(kind, path), family) for name, path in self.files(kind).items()]
            for kind, folder in ADAPTER_FOLDERS.items()
        }

    def _record(self, value: Any) -> AdapterRecord:
        """An adapter that a caller names; fields about its file are not read from callers."""
        if isinstance(value, AdapterRecord):
            value = asdict(value)
        if not isinstance(value, Mapping) or value.get("kind") not in ADAPTER_FOLDERS or not isinstance(value.get("name"), str):
            message = f'An adapter is {{"kind": {" or ".join(ADAPTER_FOLDERS)}, "name": …, "scale": …}}.'
            raise ApiError(422, message, code="invalid_request", param="adapters")
        path = self.find(value["kind"], value["name"])
        return AdapterRecord(**{name: value[name] for name in ADAPTER_FIELDS if name in value}, path=str(path))


def _tagged_loras(prompts: Sequence[str]) -> list[AdapterRecord]:
    """The LoRAs of the tags in a prompt, without their files."""
    tags = [tag for tag in split_tags(prompts[0])[1] if tag.kind in LORA_TAG_KINDS] if prompts else []
    loras = [lora_of_tag(tag) for tag in tags]
    return [
        AdapterRecord(
            "lora", lora.name, scale=lora.scale, text_scale=None if lora.text_scale == lora.scale else lora.text_scale, rank=lora.rank
        )
        for lora in loras
    ]


def _described(name: str, made_for: str | None, family: str | None) -> dict[str, Any]:
    return {"name": name, "family": made_for, "fits": None if made_for is None or family is None else made_for == family}


def family_of_adapter(kind: str, path: Path) -> str | None:
    """The family of models that an adapter was made for; None if unknown."""
    try:
        return _family(kind, path, path.stat().st_mtime)
    except (DaguerreError, OSError):
        return None


def _embedding_family(path: Path) -> str | None:
    """The family of the widest text encoder that an embedding has vectors for: 768 alone is SD 1, next to 1280 it is SDXL."""
    widths = load_embedding(path).vectors
    return "sdxl" if len(widths) > 1 else CONTEXT_FAMILIES.get(next(iter(widths)))


FAMILY_READERS: Mapping[str, Callable[[Path], str | None]] = {
    "lora": lambda path: load_lora(path).family,
    "embedding": _embedding_family,
    "controlnet": controlnet_family,
}


@lru_cache(maxsize=256)
def _family(kind: str, path: Path, _modified: float) -> str | None:
    return FAMILY_READERS[kind](path)
