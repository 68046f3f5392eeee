"""The shipped DDPM: it opens by name, and its classes give images of their own colours on a light background."""

import torch

import daguerre
from daguerre.conditioning.class_map_image import LabelConditioner
from daguerre.data.emoji.faces import FACES
from daguerre.data.images import to_tensor


def test_it_opens_by_name_and_generates_its_classes():
    model = daguerre.load("ddpm", dtype=torch.float32)
    assert isinstance(model.conditioner, LabelConditioner)
    assert {*model.conditioner.names} == {*FACES}
    fox, devil = (to_tensor(image.image) for image in daguerre.generate(model, prompt=("fox", "smiling face with horns"), steps=8))
    middle = (slice(None), slice(10, 22), slice(10, 22))
    assert fox[middle][0].mean() > fox[middle][2].mean() + 0.5  # orange: red far above blue
    assert devil[middle][2].mean() > devil[middle][1].mean() + 0.3  # purple: blue above green
    assert min(fox[:, :3, :3].mean(), devil[:, :3, :3].mean()) > 0  # light corners
