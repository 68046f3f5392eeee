"""Generate images: a request in, a stream of steps out.

    for step in stream(model, prompt="a red apple"):
        show(step.preview())
    step.images.save("apple.png")

The names load their modules on first use, so that reading the metadata of an image does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daguerre.pipelines.generation import Step as Step
    from daguerre.pipelines.generation import generate as generate
    from daguerre.pipelines.generation import stream as stream
    from daguerre.pipelines.images.output import GeneratedImage as GeneratedImage
    from daguerre.pipelines.images.output import GeneratedImages as GeneratedImages
    from daguerre.pipelines.request import Request as Request

__all__ = ["GeneratedImage", "GeneratedImages", "Request", "Step", "generate", "stream"]


def __getattr__(name: str) -> Any:
    if name == "Request":
        import daguerre.pipelines.request as file
    elif name in ("GeneratedImage", "GeneratedImages"):
        import daguerre.pipelines.images.output as file
    elif name in ("Step", "generate", "stream"):
        import daguerre.pipelines.generation as file
    else:
        raise AttributeError(f"module 'daguerre.pipelines' has no attribute {name!r}")
    return getattr(file, name)
