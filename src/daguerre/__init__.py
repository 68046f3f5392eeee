"""Stable Diffusion and every generation that led to it.

    import daguerre

    model = daguerre.load()                                 # the embedded model; or a folder, a checkpoint file, a hub id
    (image,) = daguerre.generate(model, prompt="a red apple", steps=20, seed=7)
    image.save("apple.png")

Each name loads its module on first use, so `import daguerre` is instant. docs/python.md shows all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from daguerre.cpu_threads import wait_passively
from daguerre.version import VERSION

if TYPE_CHECKING:
    from daguerre.cpu_threads import free_cores as free_cores
    from daguerre.data.images import to_image as to_image
    from daguerre.data.images import to_tensor as to_tensor
    from daguerre.diffusion import SAMPLERS as SAMPLERS
    from daguerre.diffusion import Denoiser as Denoiser
    from daguerre.diffusion import Schedule as Schedule
    from daguerre.diffusion import ScheduleConfig as ScheduleConfig
    from daguerre.diffusion import classifier_free_guidance as classifier_free_guidance
    from daguerre.diffusion import get_sigmas as get_sigmas
    from daguerre.diffusion import training_pair as training_pair
    from daguerre.pipelines import GeneratedImage as GeneratedImage
    from daguerre.pipelines import GeneratedImages as GeneratedImages
    from daguerre.pipelines import Request as Request
    from daguerre.pipelines import Step as Step
    from daguerre.pipelines import generate as generate
    from daguerre.pipelines import stream as stream
    from daguerre.pipelines.images.grid import image_table as image_table
    from daguerre.pipelines.images.grid import labelled_grid as labelled_grid
    from daguerre.pipelines.latents import decode as decode
    from daguerre.pipelines.latents import encode as encode
    from daguerre.weights import load as load
    from daguerre.weights import save as save

__version__ = VERSION
wait_passively()  # here, because it has an effect only before PyTorch is imported
_MODULES = {
    "weights": ("load", "save"),
    "pipelines": ("GeneratedImage", "GeneratedImages", "Request", "Step", "generate", "stream"),
    "pipelines.images.grid": ("image_table", "labelled_grid"),
    "pipelines.latents": ("decode", "encode"),
    "cpu_threads": ("free_cores",),
    "data.images": ("to_image", "to_tensor"),
    "diffusion": ("SAMPLERS", "Denoiser", "Schedule", "ScheduleConfig", "classifier_free_guidance", "get_sigmas", "training_pair"),
}
__all__ = ["__version__", *(name for names in _MODULES.values() for name in names)]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"daguerre.{module}"), name)
    raise AttributeError(f"module 'daguerre' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
