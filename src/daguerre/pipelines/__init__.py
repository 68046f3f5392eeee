"""A request in, a stream of steps out.

    for step in steps(model, prompt="a red apple"):
        show(step.preview())
    step.pictures.save("apple.png")

The names load their files on first use, so that reading what a picture says of itself imports no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daguerre.pipelines.generate import Step as Step
    from daguerre.pipelines.generate import generate as generate
    from daguerre.pipelines.generate import steps as steps
    from daguerre.pipelines.images.output import Picture as Picture
    from daguerre.pipelines.images.output import Pictures as Pictures
    from daguerre.pipelines.request import Request as Request

__all__ = ["Picture", "Pictures", "Request", "Step", "generate", "steps"]


def __getattr__(name: str) -> Any:
    if name == "Request":
        import daguerre.pipelines.request as file
    elif name in ("Picture", "Pictures"):
        import daguerre.pipelines.images.output as file
    elif name in ("Step", "generate", "steps"):
        import daguerre.pipelines.generate as file
    else:
        raise AttributeError(f"module 'daguerre.pipelines' has no attribute {name!r}")
    return getattr(file, name)
