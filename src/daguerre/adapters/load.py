"""Load the adapters that a request records, and find adapter files by name in folders."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from daguerre.adapters.attach import Adapter, with_adapters
from daguerre.adapters.controlnet import load_controlnet
from daguerre.adapters.embedding import load_embedding
from daguerre.adapters.ip_adapter import load_ip_adapter
from daguerre.adapters.lora.read import load_lora
from daguerre.adapters.record import AdapterRecord
from daguerre.adapters.t2i_adapter import load_t2i_adapter
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion


def with_recorded_adapters(model: LatentDiffusion, records: Sequence[AdapterRecord], folders: Sequence[Path] = ()) -> LatentDiffusion:
    """The model with the adapters of a request attached.

    Args:
        folders: where to search files that are not at their recorded paths.

    Raises:
        DaguerreError: a file is missing, has changed since it was recorded, or does not fit the model.
    """
    return with_adapters(model, [load_adapter(record, folders, model) for record in records]) if records else model


def load_adapter(record: AdapterRecord, folders: Sequence[Path] = (), model: LatentDiffusion | None = None) -> Adapter:
    """Load an adapter from its file, with the recorded strengths. model: for an adapter with images, the model it is for."""
    path = _find(record, record.path, folders)
    loaded: Adapter
    if record.kind == "lora":
        loaded = load_lora(path)
    elif record.kind == "embedding":
        loaded = load_embedding(path, word=record.name)
    elif model is None:
        raise DaguerreError(f"{record.name!r} is an adapter of the kind {record.kind}, which is loaded for a model; give the model.")
    elif record.kind == "controlnet":
        loaded = load_controlnet(path, model)
    elif record.kind == "t2i-adapter":
        loaded = load_t2i_adapter(path, model)
    else:
        loaded = load_ip_adapter(path, model, encoder=record.encoder and _find(record, record.encoder, folders))
    if record.sha256 is not None and loaded.record.sha256 != record.sha256:
        raise DaguerreError(f"The {record.kind} '{path}' has changed since it was recorded; use the original file.")
    hashes = {"sha256": loaded.record.sha256, "short_hash": loaded.record.short_hash}
    return replace(loaded, record=replace(record, **hashes))


def _find(record: AdapterRecord, recorded: str | None, folders: Iterable[Path]) -> Path:
    """A file of an adapter, at its recorded path or in a folder."""
    if recorded is None:
        raise DaguerreError(f"The {record.kind} {record.name!r} came from a program, not from a file; attach it with `with_adapters`.")
    path = Path(recorded)
    candidates = [path, *(folder / path.name for folder in folders)]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        raise DaguerreError(f"The {record.kind} '{recorded}' does not exist any more; give the folder that has it with --adapters.")
    return found


def is_recorded(requested: AdapterRecord, attached: AdapterRecord) -> bool:
    """Whether an attached adapter is the requested one, whose hashes may be unknown."""
    known = {name: getattr(attached, name) for name in ("sha256", "short_hash") if getattr(requested, name) is None}
    return replace(requested, **known) == attached
