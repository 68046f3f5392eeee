"""Maps: of the same sample as the image, with the palette's colours alone; files beside a folder's images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from daguerre.data import EmojiDataset, FolderDataset, ShapesDataset
from daguerre.data.condition_maps import SHAPES_PALETTE, downsample, edges, load_condition_maps
from daguerre.data.shapes import SHAPES
from daguerre.errors import DaguerreError


def both(source, maps, index: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its map, from generators in the same state."""
    return tuple(np.asarray(each.sample(index, np.random.default_rng([7, index])).image, dtype=int) for each in (source, maps))


def test_semantic_maps_of_shapes_lie_where_the_shapes_are():
    source = ShapesDataset(32)
    maps, palette = load_condition_maps(source, "semantic")
    assert palette == SHAPES_PALETTE
    assert len(set(palette)) == len(SHAPES) + 1
    for index in range(0, len(source), 9):
        image, map = both(source, maps, index)
        scene = source.scene(index, np.random.default_rng([7, index]))
        seen = {tuple(colour) for colour in map.reshape(-1, 3)}
        assert seen == {palette[0], *(palette[1 + SHAPES.index(drawn.shape)] for drawn in scene.shapes)}
        for drawn in scene.shapes:
            pixels = image[(map == palette[1 + SHAPES.index(drawn.shape)]).all(axis=2)]
            assert np.abs(np.median(pixels, axis=0) - scene.paint).max() > 20  # not the background


def test_edges_are_where_brightness_changes():
    image = Image.new("RGB", (16, 16))
    image.paste("white", (8, 0, 16, 16))
    found = np.asarray(edges(image))[..., 0]
    assert (found[:, 7:9] > 200).all()
    assert not found[:, :6].any()
    assert not found[:, 10:].any()


def test_a_small_image_has_blocks_of_means():
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


def test_a_folders_maps_are_cut_as_its_images(folder: Path):
    source = FolderDataset(folder / "images", 16)
    maps, palette = load_condition_maps(source, "semantic", folder / "maps")
    assert palette == ((0, 0, 0), (0, 0, 255))
    for index in range(3):
        image, map = both(source, maps, index)
        assert np.array_equal(image[..., 1] < 128, map[..., 2] > 128)
        assert {tuple(colour) for colour in map.reshape(-1, 3)} <= set(palette)  # nothing is smoothed


def test_depth_has_no_palette_and_changes_its_key_with_its_files(folder: Path):
    source = FolderDataset(folder / "images", 16)
    maps, palette = load_condition_maps(source, "depth", folder / "maps")
    assert palette == ()
    image, map = both(source, maps, 1)
    assert np.array_equal(image[..., 1] < 128, map[..., 2] > 128)
    Image.linear_gradient("L").resize((48, 32)).save(folder / "maps" / "1.png")
    assert load_condition_maps(source, "depth", folder / "maps").source.key != maps.key


def test_what_is_wrong_with_maps_is_named(folder: Path):
    source = FolderDataset(folder / "images", 16)
    with pytest.raises(DaguerreError, match="--maps"):
        load_condition_maps(source, "semantic")
    with pytest.raises(DaguerreError, match="leave out the folder"):
        load_condition_maps(source, "edges", folder / "maps")
    with pytest.raises(DaguerreError, match="leave out the folder"):
        load_condition_maps(ShapesDataset(32), "semantic", folder / "maps")
    with pytest.raises(DaguerreError, match="--maps"):
        load_condition_maps(ShapesDataset(32), "depth")
    with pytest.raises(DaguerreError, match="edges or small"):
        load_condition_maps(EmojiDataset(32), "semantic")
    Image.new("RGB", (48, 30)).save(folder / "maps" / "1.png")
    with pytest.raises(DaguerreError, match=r"1\.png' is 48×30, not the size of its image"):
        load_condition_maps(source, "semantic", folder / "maps")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8)).save(folder / "maps" / "1.png")
    with pytest.raises(DaguerreError, match="more than 256 colours"):
        load_condition_maps(source, "semantic", folder / "maps")
    (folder / "maps" / "1.png").unlink()
    with pytest.raises(DaguerreError, match="There is no map"):
        load_condition_maps(source, "semantic", folder / "maps")
