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
    from daguerre.pipelines import stream as stream
    from daguerre.weights import load as load
    from daguerre.weights import save as save

__version__ = VERSION
__all__ = ["Request", "Step", "__version__", "generate", "load", "save", "stream"]


def __getattr__(name: str) -> Any:
    if name in ("load", "save"):
        import daguerre.weights as module
    elif name in ("Request", "Step", "generate", "stream"):
        import daguerre.pipelines as module
    else:
        raise AttributeError(f"module 'daguerre' has no attribute {name!r}")
    return getattr(module, name)
