"""Find models: embedded ones by name, others by path. Imports no torch, so that listing is fast."""

import re
from dataclasses import dataclass
from pathlib import Path

from daguerre.atomic_io import expand_user
from daguerre.errors import DaguerreError, nearest

ASSETS = Path(__file__).parent.parent / "assets"
INDEX = "model_index.json"
FIRST_STAGE = "config.json"  # in the folder of an embedded part that is no complete model
LATENT_PRIOR = "LatentPrior"  # class name in the index of a first stage with a prior
DEFAULT = "emoji"
CLIP_ASSET = "clip"  # a folder in ASSETS that is no generating model
# The embedded latent diffusion model works on the codes of the embedded VQGAN; the wheel has its weights once.
SHARED_FIRST_STAGES = {ASSETS / "ldm": ASSETS / "vqgan" / "vqvae"}
CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".bin")


@dataclass(frozen=True)
class ModelEntry:
    """An embedded model; `size` is the sum of its files in bytes."""

    name: str
    folder: Path
    size: int


def embedded(assets: Path = ASSETS) -> list[ModelEntry]:
    """The embedded models, sorted by name."""
    folders = sorted(index.parent for index in assets.glob(f"*/{INDEX}"))
    return [ModelEntry(folder.name, folder, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())) for folder in folders]


def local(source: str | Path | None = None, assets: Path = ASSETS) -> Path | None:
    """The folder of an embedded model or first stage by name (None is the default), or an existing path; None if it is neither."""
    if isinstance(source, str | None) and any((assets / (source or DEFAULT) / file).is_file() for file in (INDEX, FIRST_STAGE)):
        return assets / (source or DEFAULT)
    return path if source is not None and (path := expand_user(source)).exists() else None


def find(source: str | Path | None = None, assets: Path = ASSETS) -> Path:
    """Like `local`, but raise an error if there is no model.

    Raises:
        DaguerreError: there is no such model; suggests the closest name.
    """
    if path := local(source, assets):
        return path
    names = [entry.name for entry in embedded(assets)]
    inside = f"embedded models are {', '.join(names)}" if names else "this installation has no embedded models"
    if source is None:
        raise DaguerreError(f"The embedded model {DEFAULT!r} is missing from this installation ({inside}); give a path instead.")
    if str(source).endswith(CHECKPOINTS):
        raise DaguerreError(f"There is no file {str(source)!r} (in the folder '{Path.cwd()}'); check the path.")
    raise DaguerreError(f"There is no model {str(source)!r}: {inside}, and no such path exists.{nearest(str(source), names)}")


def clip_folder(source: str | Path | None = None) -> Path:
    """The folder of a CLIP: an existing path, else the embedded one for None or "clip"."""
    path = None if source is None else expand_user(source)
    return ASSETS / CLIP_ASSET if path is None or (str(source) == CLIP_ASSET and not path.exists()) else path


def may_be_on_the_hub(source: str | Path | None) -> bool:
    """True for the form OWNER/NAME, optionally with the /FILE of a checkpoint and @REVISION, that is no embedded model and no local path.

    If the first component exists locally, it is a misspelt path. OWNER/NAME with a checkpoint's suffix is a path, too."""
    if not isinstance(source, str) or source[:1] in ("", ".", "/", "~") or local(source) is not None or Path(source.split("/")[0]).exists():
        return False
    name, _, revision = source.partition("@")
    parts = name.count("/") + 1
    if re.match(r"[\w.-]+/[\w.-]+(/|$)", name) is None:
        return False
    return (parts == 2 and not name.endswith(CHECKPOINTS)) or (parts > 2 and (bool(revision) or name.endswith(CHECKPOINTS)))
