"""Which models there are: those that lie inside the package, by name, and folders by path. Imports no torch, so that listing is quick."""

from dataclasses import dataclass
from pathlib import Path

from daguerre.errors import DaguerreError, nearest

ASSETS = Path(__file__).parent.parent / "assets"
INDEX = "model_index.json"
LATENT_PRIOR = "LatentPrior"  # the class that the index of a first stage with a prior names
DEFAULT = "emoji"
CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".bin")


@dataclass(frozen=True)
class ModelEntry:
    """A model inside the package; `size` is the sum of its files in bytes."""

    name: str
    folder: Path
    size: int


def embedded(assets: Path = ASSETS) -> list[ModelEntry]:
    """The models inside the package, by name."""
    folders = sorted(index.parent for index in assets.glob(f"*/{INDEX}"))
    return [ModelEntry(folder.name, folder, sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())) for folder in folders]


def local(source: str | Path | None = None, assets: Path = ASSETS) -> Path | None:
    """An embedded model by its name (None is the default one), or a path that exists; None where it is neither."""
    if isinstance(source, str | None) and (assets / (source or DEFAULT) / INDEX).is_file():
        return assets / (source or DEFAULT)
    return Path(source) if source is not None and Path(source).exists() else None


def find(source: str | Path | None = None, assets: Path = ASSETS) -> Path:
    """What `local` finds.

    Raises:
        DaguerreError: there is no such model; the nearest name is told.
    """
    if path := local(source, assets):
        return path
    names = [entry.name for entry in embedded(assets)]
    inside = f"inside are {', '.join(names)}" if names else "none are inside this package"
    if source is None:
        raise DaguerreError(f"The embedded model {DEFAULT!r} is missing from this installation ({inside}); give a folder instead.")
    raise DaguerreError(f"There is no model {str(source)!r}: {inside}, and no such path exists.{nearest(str(source), names)}")


def may_be_on_the_hub(source: str | Path | None) -> bool:
    """Whether only the hub can tell what this is: no embedded model, no path nor a slip in one, and of the form OWNER/NAME, perhaps with
    the /FILE of a checkpoint and a @REVISION."""
    if not isinstance(source, str) or source[:1] in ("", ".", "/", "~") or local(source) is not None or Path(source.split("/")[0]).exists():
        return False
    name, _, revision = source.partition("@")
    parts = name.count("/") + 1
    return parts == 2 or (parts > 2 and (bool(revision) or name.endswith(CHECKPOINTS)))
