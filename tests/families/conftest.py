"""A tiny pipeline of diffusers for each family and the model loaded from its folder, built once."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import daguerre
from daguerre.models.latent_diffusion import LatentDiffusion
from tests.families import peers


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path, LatentDiffusion]]:
    """`peer("sdxl")` is a pipeline, the folder it was saved to, and the model loaded from it. Only the scheduler may be changed."""

    @cache
    def made(name: str) -> tuple[Any, Path, LatentDiffusion]:
        pipeline = peers.PEERS[name]()
        folder = peers.saved(pipeline, tmp_path_factory.mktemp("peers") / name)
        return pipeline, folder, daguerre.load(folder, device="cpu")

    return made
