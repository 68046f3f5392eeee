"""Images with their condition maps side by side, for training a ControlNet."""

from torch import Tensor

from daguerre.atomic_io import expand_user
from daguerre.data import Dataset
from daguerre.data.condition_maps import load_condition_maps, with_maps
from daguerre.data.dataset import Subset
from daguerre.errors import DaguerreError, nearest
from daguerre.pipelines.images.preprocessors import PREPROCESSORS


def with_control_maps(source: Dataset, control: str) -> Subset:
    """The images of a dataset, each with its map on the right. control: a preprocessor, or a directory of maps.

    Raises:
        DaguerreError: there is no such preprocessor or directory, or a map is missing or has another size than its image.
    """
    if control in PREPROCESSORS:
        maps = load_condition_maps(source, control, computed=PREPROCESSORS).source
    elif (folder := expand_user(control)).is_dir():
        maps = load_condition_maps(source, "pose", folder).source  # the kind for any map that is an image
    else:
        raise DaguerreError(
            f"There is no preprocessor and no directory {control!r}; use one of {', '.join(PREPROCESSORS)}, or a directory of maps with "
            f"the names of the images.{nearest(control, PREPROCESSORS)}"
        )
    return with_maps(source, maps)


def split_pair(x: Tensor) -> tuple[Tensor, Tensor]:
    """The images (B, 3, H, W) in [−1, 1] and the maps (B, 3, H, W) in [0, 1] of samples x (B, 3, H, 2W)."""
    image, control_map = x.chunk(2, dim=-1)
    return image, (control_map + 1) / 2
