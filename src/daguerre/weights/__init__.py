"""Load models from any source, and save them in the diffusers folder layout.

    model = load()                     # the embedded model
    model = load("my-model")           # a folder in the diffusers layout
    save(model, "copy", dtype=torch.float16)

Modules are imported on first use, so that listing models imports no torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daguerre.weights.diffusers.clip import load_clip as load_clip
    from daguerre.weights.diffusers.clip import save_clip as save_clip
    from daguerre.weights.diffusers.prior import load_prior as load_prior
    from daguerre.weights.diffusers.prior import save_prior as save_prior
    from daguerre.weights.diffusers.vae import load_first_stage as load_first_stage
    from daguerre.weights.diffusers.vae import save_first_stage as save_first_stage
    from daguerre.weights.hashing import identity as identity
    from daguerre.weights.loading import load as load
    from daguerre.weights.loading import load_diffusion as load_diffusion
    from daguerre.weights.loading import load_vae as load_vae
    from daguerre.weights.loading import save as save

__all__ = [
    "identity",
    "load",
    "load_clip",
    "load_diffusion",
    "load_first_stage",
    "load_prior",
    "load_vae",
    "save",
    "save_clip",
    "save_first_stage",
    "save_prior",
]


def __getattr__(name: str) -> Any:
    if name in ("load", "load_diffusion", "load_vae", "save"):
        import daguerre.weights.loading as file
    elif name in ("load_clip", "save_clip"):
        import daguerre.weights.diffusers.clip as file
    elif name in ("load_first_stage", "save_first_stage"):
        import daguerre.weights.diffusers.vae as file
    elif name == "identity":
        import daguerre.weights.hashing as file
    elif name in ("load_prior", "save_prior"):
        import daguerre.weights.diffusers.prior as file
    else:
        raise AttributeError(f"module 'daguerre.weights' has no attribute {name!r}")
    return getattr(file, name)
