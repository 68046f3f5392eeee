"""Options of every recipe: the machine that it runs on."""

import os
from dataclasses import fields

import pytest
import torch

from daguerre.errors import DaguerreError
from daguerre.training.options.machine import MachineOptions
from daguerre.training.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_the_options_of_the_machine(name: str):
    assert "machine" in {field.name for field in fields(RECIPES[name].options)}


def test_a_device_hides_the_others(monkeypatch: pytest.MonkeyPatch):
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "before")
    MachineOptions().apply()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "before"
    MachineOptions("cpu").apply()
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["ACCELERATE_USE_CPU"]) == ("", "true")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    MachineOptions("cuda:3").apply()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DaguerreError, match="'cuda' is not available on this machine"):
        MachineOptions("cuda").apply()


def test_impossible_devices_are_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DaguerreError, match="'tpu' is not known; use cpu, cuda, cuda:1 or mps"):
        MachineOptions("tpu")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DaguerreError, match="A launcher gives each process its own GPU"):
        MachineOptions("cuda:1")
