"""Command lines run inside this process, on the tiny model."""

from collections.abc import Callable
from pathlib import Path

import pytest

import daguerre
from daguerre.cli.main import main
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.weights import catalog

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tiny_model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return daguerre.save(tiny_model, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in an empty folder, with the tiny model as the embedded one: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalog, "DEFAULT", "tiny")
    for function in (catalog.find, catalog.local):
        monkeypatch.setattr(function, "__defaults__", (None, folder.parent))
    monkeypatch.setattr(catalog.embedded, "__defaults__", (folder.parent,))

    def run_(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_
