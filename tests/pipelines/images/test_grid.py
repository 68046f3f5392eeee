"""Grids and tables place every image unchanged, or enlarged as a whole, next to its labels."""

import numpy as np
from PIL import Image

from daguerre.pipelines.images.grid import image_table, labelled_grid


def noise(seed: int, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_every_box_of_a_table_holds_its_image():
    images = [[noise(3 * i + j, (130, 90)) for j in range(3)] for i in range(2)]
    captions = [["a", "", "b " * 60], ["", "", ""]]
    table, boxes = image_table(images, captions, rows=["x " * 70, "y"], columns=["first", "second " * 20, "third"])
    found = [[table.crop(box) for box in row] for row in boxes]
    assert [[image.tobytes() for image in row] for row in found] == [[image.tobytes() for image in row] for row in images]
    outside = table.copy()
    for box in boxes[0] + boxes[1]:
        outside.paste("white", box)
    dark = np.argwhere(np.asarray(outside.convert("L")) < 128)
    assert dark[:, 1].min() >= 0
    assert (dark[:, 0] < boxes[0][0][1]).any()  # headings above
    assert (dark[:, 1] < boxes[0][0][0]).any()  # headings before
    assert ((dark[:, 0] > boxes[0][2][3]) & (dark[:, 0] < boxes[1][2][1]) & (dark[:, 1] >= boxes[0][2][0])).any()  # a caption below


def test_small_images_are_enlarged_and_an_incomplete_row_stays():
    grid = labelled_grid([noise(i, (32, 16)) for i in range(3)], ["a", "b", "c"], columns=2)
    table, boxes = image_table([[noise(0, (32, 16)), noise(1, (32, 16))], [noise(2, (32, 16))]], [["a", "b"], ["c"]])
    assert grid.tobytes() == table.tobytes()
    assert [len(row) for row in boxes] == [2, 1]
    assert (boxes[0][0][2] - boxes[0][0][0], boxes[0][0][3] - boxes[0][0][1]) == (128, 64)
