"""Condition maps correspond to their images, and semantic maps have only colours of the palette."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daguerre.data import EmojiDataset, FolderDataset, ShapesDataset
from daguerre.data.condition_maps import SHAPES_PALETTE, downsample, edges, load_condition_maps
from daguerre.data.shapes import SHAPES
from daguerre.errors import DaguerreError


def image_and_map(source, maps, index: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its map, from generators in the same state."""
    return tuple(np.asarray(each.sample(index, np.random.default_rng([7, index])).image, dtype=int) for each in (source, maps))


def test_semantic_maps_cover_the_shapes():
    source = ShapesDataset(32)
    maps, palette = load_condition_maps(source, "semantic")
    assert palette == SHAPES_PALETTE
    assert len(set(palette)) == len(SHAPES) + 1
    for index in range(0, len(source), 9):
        image, map = image_and_map(source, maps, index)
        scene = source.scene(index, np.random.default_rng([7, index]))
        colours = {tuple(colour) for colour in map.reshape(-1, 3)}
        assert colours == {palette[0], *(palette[1 + SHAPES.index(drawn.shape)] for drawn in scene.shapes)}
        for drawn in scene.shapes:
            pixels = image[(map == palette[1 + SHAPES.index(drawn.shape)]).all(axis=2)]
            assert np.abs(np.median(pixels, axis=0) - scene.paint).max() > 20  # not the background


def test_edges_are_at_brightness_changes():
    image = Image.new("RGB", (16, 16))
    image.paste("white", (8, 0, 16, 16))
    gradient = np.asarray(edges(image))[..., 0]
    assert (gradient[:, 7:9] > 200).all()
    assert not gradient[:, :6].any()
    assert not gradient[:, 10:].any()


def test_downsample_gives_block_means():
    image = Image.linear_gradient("L").convert("RGB").resize((32, 32))
    small = np.asarray(downsample(image), dtype=float)
    blocks = small.reshape(4, 8, 4, 8, 3)
    assert np.ptp(blocks, axis=(1, 3)).max() == 0
    assert np.abs(blocks[:, 0, :, 0] - np.asarray(image, dtype=float).reshape(4, 8, 4, 8, 3).mean(axis=(1, 3))).max() <= 0.6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    for i in range(3):
        image = Image.new("RGB", (48, 32), "white")
        image.paste((200, 0, 0), (8 * i, 0, 8 * i + 16, 32))
        image.save(tmp_path / "images" / f"{i}.png")
        (tmp_path / "images" / f"{i}.txt").write_text("a bar")
        map = Image.new("RGB", (48, 32), (0, 0, 0))
        map.paste((0, 0, 255), (8 * i, 0, 8 * i + 16, 32))
        map.save(tmp_path / "maps" / f"{i}.png")
    return tmp_path


def test_maps_of_a_folder_have_the_crops_of_its_images(folder: Path):
    source = FolderDataset(folder / "images", 16)
    maps, palette = load_condition_maps(source, "semantic", folder / "maps")
    assert palette == ((0, 0, 0), (0, 0, 255))
    for index in range(3):
        image, map = image_and_map(source, maps, index)
        assert np.array_equal(image[..., 1] < 128, map[..., 2] > 128)
        assert {tuple(colour) for colour in map.reshape(-1, 3)} <= set(palette)  # nothing is smoothed


def test_depth_maps_have_no_palette_and_their_key_depends_on_the_files(folder: Path):
    source = FolderDataset(folder / "images", 16)
    maps, palette = load_condition_maps(source, "depth", folder / "maps")
    assert palette == ()
    image, map = image_and_map(source, maps, 1)
    assert np.array_equal(image[..., 1] < 128, map[..., 2] > 128)
    Image.linear_gradient("L").resize((48, 32)).save(folder / "maps" / "1.png")
    assert load_condition_maps(source, "depth", folder / "maps").source.key != maps.key


def test_invalid_maps_raise(folder: Path):
    source = FolderDataset(folder / "images", 16)
    with pytest.raises(DaguerreError, match="--maps"):
        load_condition_maps(source, "semantic")
    with pytest.raises(DaguerreError, match="leave out --maps"):
        load_condition_maps(source, "edges", folder / "maps")
    with pytest.raises(DaguerreError, match="leave out --maps"):
        load_condition_maps(ShapesDataset(32), "semantic", folder / "maps")
    with pytest.raises(DaguerreError, match="--maps"):
        load_condition_maps(ShapesDataset(32), "depth")
    with pytest.raises(DaguerreError, match="edges or small"):
        load_condition_maps(EmojiDataset(32), "semantic")
    Image.new("RGB", (48, 30)).save(folder / "maps" / "1.png")
    with pytest.raises(DaguerreError, match=r"1\.png' has 48×30 pixels; it must have the size of its image"):
        load_condition_maps(source, "semantic", folder / "maps")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(folder / "maps" / "1.png")
    with pytest.raises(DaguerreError, match="more than 256 colours"):
        load_condition_maps(source, "semantic", folder / "maps")
    (folder / "maps" / "1.png").unlink()
    with pytest.raises(DaguerreError, match="There is no map"):
        load_condition_maps(source, "semantic", folder / "maps")
