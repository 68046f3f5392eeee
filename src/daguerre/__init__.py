"""Stable Diffusion and every generation that led to it.

    import daguerre

    model = daguerre.load()                                 # the embedded model; or a folder
    (picture,) = daguerre.generate(model, prompt="a red apple", steps=20, seed=7)
    picture.save("apple.png")

The names below load their rooms on first use, so that `import daguerre` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from daguerre.version import VERSION

if TYPE_CHECKING:
    from daguerre.pipelines import Request as Request
    from daguerre.pipelines import Step as Step
    from daguerre.pipelines import generate as generate
    from daguerre.pipelines import steps as steps
    from daguerre.weights import load_any as load
    from daguerre.weights import save as save

__version__ = VERSION
__all__ = ["Request", "Step", "__version__", "generate", "load", "save", "steps"]


def __getattr__(name: str) -> Any:
    if name == "load":
        from daguerre.weights import load_any

        return load_any
    if name == "save":
        import daguerre.weights as room
    elif name in ("Request", "Step", "generate", "steps"):
        import daguerre.pipelines as room
    else:
        raise AttributeError(f"module 'daguerre' has no attribute {name!r}")
    return getattr(room, name)
