"""The LoRAs and embeddings that a server offers: files in two folders, which callers name but never by a path."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from daguerre.adapters.embedding import load_embedding
from daguerre.adapters.lora.read import load_lora
from daguerre.adapters.record import AdapterRecord
from daguerre.conditioning.syntax import lora_of_tag, split_tags
from daguerre.errors import DaguerreError, nearest
from daguerre.server.errors import ApiError

OFFERED_SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
LORA_TAG_KINDS = ("lora", "lyco")
ADAPTER_FIELDS = ("kind", "name", "scale", "text_scale", "rank")


class AdapterLibrary:
    """Adapters by name: of LoRAs in the folder `loras` of a server's data, of embeddings in `embeddings`."""

    def __init__(self, data: Path) -> None:
        self._folders = {"lora": data / "loras", "embedding": data / "embeddings"}

    def files(self, kind: str) -> dict[str, Path]:
        """The files of a kind by name; a changed folder is read again."""
        folder = self._folders.get(kind, Path("none"))
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in OFFERED_SUFFIXES) if folder.is_dir() else []
        return {path.stem: path for path in reversed(paths)}

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

    def notes(self, prompts: Sequence[str]) -> list[str]:
        """A warning for each LoRA that a tag names and that is not here."""
        files = self.files("lora")
        missing = [lora.name for lora in _tagged_loras(prompts) if lora.name not in files]
        return [f"The LoRA {name[:100]!r} of the prompt is not here and was ignored.{nearest(name, files)}" for name in missing]

    def listing(self, family: str | None) -> dict[str, list[dict[str, Any]]]:
        """All adapters for callers; `fits` is whether one is for a model of the family, None if that is not known."""
        loras = [_described(name, lora_family(path, path.stat().st_mtime), family) for name, path in self.files("lora").items()]
        embeddings = [
            _described(name, embedding_family(path, path.stat().st_mtime), family) for name, path in self.files("embedding").items()
        ]
        return {"loras": loras, "embeddings": embeddings, "controlnets": []}

    def _record(self, value: Any) -> AdapterRecord:
        """An adapter that a caller names; fields about its file are not read from callers."""
        if isinstance(value, AdapterRecord):
            value = asdict(value)
        if not isinstance(value, Mapping) or value.get("kind") not in self._folders or not isinstance(value.get("name"), str):
            message = 'An adapter is {"kind": "lora" or "embedding", "name": …, "scale": …}.'
            raise ApiError(422, message, code="invalid_request", param="adapters")
        files = self.files(value["kind"])
        if value["name"] not in files:
            message = f"There is no {value['kind']} {value['name'][:100]!r} here.{nearest(value['name'], files)}"
            raise ApiError(404, message, code="adapter_not_found", param="adapters")
        chosen = {name: value[name] for name in ADAPTER_FIELDS if name in value}
        return AdapterRecord(**chosen, path=str(files[value["name"]]))


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


@lru_cache(maxsize=256)
def lora_family(path: Path, _modified: float) -> str | None:
    """The family of models that a LoRA was made for; None if unknown."""
    try:
        return load_lora(path).family
    except DaguerreError:
        return None


@lru_cache(maxsize=256)
def embedding_family(path: Path, _modified: float) -> str | None:
    """The family of models that an embedding was made for; None if unknown."""
    try:
        return getattr(load_embedding(path), "family", None)
    except DaguerreError:
        return None
