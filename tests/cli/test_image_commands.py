"""Commands with input images: img2img, inpaint, outpaint, folders, reproduce, and the errors of wrong inputs."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from daguerre.cli.image_inputs import read_input
from daguerre.errors import DaguerreError
from daguerre.pipelines.images.preprocess import flatten_input, resize, working_size
from daguerre.pipelines.metadata.write import read_provenance

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cat(run: Run) -> Image.Image:
    """An image cat.png in the folder where commands run, and a mask of its right half, mask.png."""
    y, x = np.mgrid[0:32, 0:32]
    picture = Image.fromarray(np.stack([8 * x, 8 * y, 255 - 8 * x], axis=-1).astype(np.uint8))
    picture.save("cat.png")
    Image.fromarray(np.uint8(x > 15) * 255).save("mask.png")
    return picture


def test_img2img_changes_an_image_and_reproduces(run: Run, cat: Image.Image):
    code, out, err = run(
        "img2img", "cat.png", "a red apple", "--steps", "4", "--strength", ".5", "--out", "new.png", "--animation", "f.webp"
    )
    assert (code, out, err) == (0, "new.png\nf.webp\n", "")
    _, origin = read_provenance("new.png")
    assert origin.request.task.input_images["image"].path == "cat.png"
    assert "Denoising strength: 0.5" in run("inspect", "new.png")[1]
    assert Image.open("f.webp").n_frames == 2
    assert run("reproduce", "new.png")[:2] == (0, "identical\n")
    assert cat.tobytes() == Image.open("cat.png").tobytes()


def test_reproduce_uses_the_number_of_threads_of_the_image(run: Run, monkeypatch: pytest.MonkeyPatch):
    count = [1]  # not torch's, because two threads on a busy core take long
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: count.__setitem__(0, threads))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert run("txt2img", "a cat", "--steps", "1", "--threads", "2", "--out", "two.png")[0] == 0
    assert (read_provenance("two.png")[1].threads, count) == (2, [2])
    count[0] = 1
    assert run("reproduce", "two.png", "--out", "again.png")[1:] == ("again.png\nidentical\n", "")
    assert (read_provenance("again.png")[1].threads, count) == (2, [2])
    _, _, err = run("reproduce", "two.png", "--threads", "1", "--out", "one.png")
    assert "daguerre: 1 threads instead of the image's 2\n" in err
    assert (read_provenance("one.png")[1].threads, count) == (1, [1])


def test_reproduce_names_an_input_that_moved_or_changed(run: Run, cat: Image.Image):
    Path("in").mkdir()
    Path("cat.png").rename("in/cat.png")
    fill = "inpaint", "in/cat.png", "mask.png", "a red apple", "--steps", "2"
    assert run(*fill, "--out", "out/new.png")[0] == 0
    Path("in/cat.png").rename("out/cat.png")  # the folder of the output is searched, too
    assert run("reproduce", "out/new.png")[:2] == (0, "identical\n")
    Path("out/cat.png").rename("dog.png")
    code, _, err = run("reproduce", "out/new.png")
    assert code == 2
    assert "The input image 'in/cat.png' of 'out/new.png' does not exist any more; give its file with --input." in err
    assert run("reproduce", "out/new.png", "--input", "dog.png")[:2] == (0, "identical\n")
    cat.transpose(Image.Transpose.ROTATE_90).save("dog.png")
    assert "The input image 'dog.png' has changed since" in run("reproduce", "out/new.png", "--input", "dog.png")[2]


def test_img2img_of_a_folder_reports_a_broken_image(run: Run, cat: Image.Image):
    Path("all").mkdir()
    for name in ("a.png", "b.jpg", "b.png"):
        cat.save(f"all/{name}")
    Path("all/c.png").write_bytes(b"no picture")
    Path("all/notes.txt").write_text("no picture at all")
    code, out, err = run("img2img", "all", "a red apple", "--steps", "2", "--strength", ".5")
    assert code == 1
    assert out.split() == ["all-img2img/a.png", "all-img2img/b.jpg.png", "all-img2img/b.png.png"]
    assert "notes.txt" in err.splitlines()[0]
    assert "c.png" in err.splitlines()[1]
    assert "1 of 4 images failed: c.png; the others are in 'all-img2img'" in err
    Path("all/c.png").unlink()
    assert run("img2img", "all", "a red apple", "--steps", "2", "--strength", ".5", "--out", "new")[0] == 0
    assert sorted(path.name for path in Path("new").iterdir()) == ["a.png", "b.jpg.png", "b.png.png"]
    assert Path("new/a.png").read_bytes() == Path("all-img2img/a.png").read_bytes()


def test_inpaint_of_a_folder_uses_masks_of_the_same_names(run: Run, cat: Image.Image):
    Path("all").mkdir()
    Path("masks").mkdir()
    for name in ("a.png", "b.png", "c.png"):
        cat.save(f"all/{name}")
    upper = Image.new("L", (32, 32))
    upper.paste(255, (0, 0, 32, 8))
    upper.save("masks/a.png")
    Image.open("mask.png").save("masks/b.bmp")
    for suffix in ("bmp", "gif"):
        upper.save(f"masks/c.{suffix}")
    code, out, err = run("inpaint", "all", "masks", "a red apple", "--steps", "2", "--out", "new")
    assert (code, out.split()) == (1, ["new/a.png", "new/b.png"])
    assert "c.png: 'c.png' needs one mask in 'masks', which has c.bmp and c.gif; name it 'c.png'." in err
    assert np.array_equal(np.asarray(Image.open("new/a.png"))[8:], np.asarray(cat)[8:])
    assert np.array_equal(np.asarray(Image.open("new/b.png"))[:, :16], np.asarray(cat)[:, :16])
    assert run("inpaint", "all", "mask.png", "a red apple", "--steps", "2", "--out", "one")[0] == 0  # one mask for all
    assert run("outpaint", "all", "a red apple", "--right", "8", "--steps", "2")[0] == 0
    assert Image.open("all-outpaint/c.png").size == (40, 32)


def test_wrong_options_for_a_folder_are_reported_once(run: Run, cat: Image.Image):
    Path("all").mkdir()
    Path("all/0.png").write_bytes(b"no picture")
    for name in ("1.png", "2.png"):
        cat.save(f"all/{name}")
    for line, message in (
        ("img2img all x --strength 2", "strength is 2.0; it is between 0"),
        ("upscale all", "cannot do upscale; take a model that can"),
        ("variations all", "cannot do variations; take a model that can"),
        ("inpaint all empty x", "'1.png' needs one mask in 'empty', which has none"),
        ("img2img all x --out a.png", "--out 'a.png' must be a folder"),
        ("img2img all x --animation a.png", "--animation and --preview need a single input image"),
    ):
        Path("empty").mkdir(exist_ok=True)
        code, out, err = run(*line.split())
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_inpaint_notes_a_mask_that_may_be_inverted(run: Run, cat: Image.Image):
    most, alpha = Image.new("L", (32, 32), 255), Image.new("RGBA", (32, 32), "white")
    most.paste(0, (8, 8, 16, 16))
    alpha.putalpha(most)
    most.save("most.png")
    alpha.save("alpha.png")
    base = "inpaint", "cat.png"
    assert run(*base, "mask.png", "a red apple", "--steps", "1", "--out", "a.png")[2] == ""
    assert "94% of the image is regenerated: what is white in the mask" in run(*base, "most.png", "x", "--steps", "1", "--out", "b.png")[2]
    assert "6% of the image is regenerated: what is transparent" in run(*base, "alpha.png", "x", "--steps", "1", "--out", "c.png")[2]


def test_a_folder_of_images_with_leftovers_of_systems(run: Run, cat: Image.Image):
    Path("all/sub").mkdir(parents=True)
    cat.save("all/1.png")
    for name in ("all/._1.png", "all/desktop.ini", "all/.DS_Store", "all/notes.txt"):
        Path(name).write_bytes(b"x")
    code, out, err = run("img2img", "all", "a red apple", "--steps", "2", "--out", "new")
    assert (code, out) == (0, "new/1.png\n")
    assert err == "daguerre: not used in 'all': notes.txt, sub; only images directly in the folder are used.\n"


def test_inpaint_and_outpaint_do_not_change_kept_pixels(run: Run, cat: Image.Image):
    assert run("inpaint", "cat.png", "mask.png", "a red apple", "--steps", "2", "--out", "in.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open("in.png"))[:, :16], np.asarray(cat)[:, :16])
    hole = cat.convert("RGBA")
    hole.putalpha(Image.fromarray(255 - np.asarray(Image.open("mask.png"))))
    hole.save("hole.png")
    assert run("inpaint", "hole.png", "alpha", "a red apple", "--steps", "2", "--out", "hole-filled.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open("hole-filled.png"))[:, :16], np.asarray(cat)[:, :16])
    assert run("reproduce", "hole-filled.png")[0] == 0
    assert run("outpaint", "cat.png", "a red apple", "--left", "5", "--bottom", "3", "--steps", "2", "--out", "out.png")[0] == 0
    assert np.array_equal(np.asarray(Image.open("out.png"))[:32, 5:], np.asarray(cat))
    assert Image.open("out.png").size == (37, 35)


def test_txt2img_with_variation_tiling_and_hires_fix(run: Run):
    line = (
        "txt2img",
        "a red apple",
        "--steps",
        "4",
        "--variation-seed",
        "8",
        "--variation-strength",
        ".3",
        "--tiling",
        "both",
        "--hires-scale",
        "1.5",
        "--animation",
        "f.png",
    )
    code, out, err = run(*line, "--out", "new.png")
    assert (code, out, err) == (0, "new.png\nf.png\n", "")
    assert Image.open("new.png").size == (48, 48)
    text = run("inspect", "new.png")[1]
    for text_part in (
        "Hires upscale: 1.5",
        "Denoising strength: 0.55",
        "Variation seed: 8",
        "Variation seed strength: 0.3",
        "Tiling: True",
    ):
        assert text_part in text
    assert run("reproduce", "new.png")[:2] == (0, "identical\n")


def test_an_odd_prompt_gives_a_note_with_its_position(run: Run, cat: Image.Image):
    note = "daguerre: note, character 3 of the prompt:\na (red apple\n  ^ '(' is never closed; write '\\(' for the character itself\n"
    assert run("txt2img", "a (red apple", "--steps", "1", "--out", "new.png") == (0, "new.png\n", note)
    Path("all").mkdir()
    for name in ("a.png", "b.png"):
        cat.save(f"all/{name}")
    assert run("img2img", "all", "a (red apple", "--steps", "2", "--out", "new")[2] == note


def blank_png(width: int, height: int) -> bytes:
    """The head of a PNG, which is all that is read of one that is too large."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (head, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("img2img none.png x", "none.png does not exist"),
        ("img2img cat.png x --strength 1.5", "strength is 1.5; it is between 0"),
        ("img2img cat.png x --strength .01", "less than one step"),
        ("img2img cat.png x --out cat.png", "--out 'cat.png' is also the input image"),
        ("img2img cat.png x --out a.png --preview ./a.png", "--preview 'a.png' is also --out"),
        ("img2img cat-2.png x --out cat.png --num-images 2", "--out 'cat-2.png' is also the input image"),
        ("attention x --image cat.png --out cat.png", "--out 'cat.png' is also the input image"),
        ("reproduce made.png --out made.png", "--out 'made.png' is the image to compare with"),
        ("reproduce made.png --out cat.png", "--out 'cat.png' is also the input image"),
        ("txt2img x --eta 2", "eta is 2.0; it must be between 0"),
        ("txt2img x --out a.png --animation a.png", "--animation 'a.png' is also --out"),
        ("txt2img x --variation-seed 8", "give both"),
        ("txt2img x --guidance-scale 1e308", "guidance_scale is 1e+308"),
        ("txt2img (red:1..3)", "Character 6 of the prompt: '1..3' in '(red:1..3)' is not a number; write a weight like (word:1.3)"),
        (f"txt2img {'(' * 99}", "Character 65 of the prompt: brackets are nested deeper than 64"),
        ("txt2img x --hires-scale 20", "up to 8 times"),
        ("inpaint cat.png alpha x", "no part of the image is transparent"),
        ("inpaint cat.png black.png x", "black all over"),
        ("inpaint cat.png wide.png x", "The mask is 64×32 and the image 32×32"),
        ("inpaint cat.png both.png x", "which is ambiguous"),
        ("outpaint cat.png x", "one must be above 0"),
        ("outpaint cat.png x --right 3000000 --top 3000000", "has 3000032×3000032 pixels, more than 128 million"),
        ("outpaint cat.png x --right 300", "332×32, one side more than 8 times the other"),
        ("img2img empty x", "There are no images in 'empty'"),
        ("img2img huge.png x", "more than 128 million pixels"),
        ("img2img long.png x", "20000×1, one side more than 8 times the other"),
    ],
)
def test_a_wrong_input_gives_one_line_and_writes_nothing(run: Run, cat: Image.Image, line: str, message: str):
    Path("empty").mkdir()
    Image.new("L", (32, 32)).save("black.png")
    Image.new("L", (64, 32), 255).save("wide.png")
    layer = cat.convert("RGBA")
    layer.putalpha(Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)))
    layer.save("both.png")
    Image.new("RGB", (20000, 1)).save("long.png")
    Path("huge.png").write_bytes(blank_png(20000, 20000))
    cat.save("cat-2.png")
    if "made.png" in line:
        run("img2img", "cat.png", "x", "--steps", "2", "--out", "made.png")
    before = {path: path.is_file() and path.read_bytes() for path in Path().iterdir()}
    code, out, err = run(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert {path: path.is_file() and path.read_bytes() for path in Path().iterdir()} == before


def test_every_image_format_is_read_as_displayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    colours = Image.new("RGB", (6, 4), (200, 30, 60))
    colours.paste((10, 220, 90), (0, 0, 3, 4))

    def read(image: Image.Image, name: str, **options: object) -> np.ndarray:
        image.save(tmp_path / name, **options)
        return np.asarray(flatten_input(read_input(tmp_path / name)))

    same = np.asarray(colours)
    assert np.array_equal(read(colours, "rgb.png"), same)
    assert np.array_equal(read(colours.quantize(4), "palette.gif"), same)
    assert np.abs(read(colours.convert("CMYK"), "cmyk.tif") - same.astype(int)).max() <= 2
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    assert np.array_equal(read(colours.transpose(Image.Transpose.ROTATE_90), "turned.png", exif=exif), same)
    clear = colours.convert("RGBA")
    clear.putalpha(0)
    assert np.array_equal(read(clear, "clear.png"), np.full_like(same, 255))
    deep = Image.fromarray(np.full((4, 6), 51 * 257, np.uint16))
    assert np.array_equal(read(deep, "deep.png"), np.full_like(same, 51))
    assert np.array_equal(read(colours.convert("L"), "grey.png")[..., 0], np.asarray(colours.convert("L")))
    assert np.array_equal(read(Image.new("RGB", (1, 1), "red"), "one.png"), [[[255, 0, 0]]])
    assert capsys.readouterr().err == ""
    assert np.array_equal(read(colours, "moving.gif", save_all=True, append_images=[Image.new("RGB", (6, 4))]), same)
    assert "moving.gif' is animated; only its first frame is used" in capsys.readouterr().err
    (tmp_path / "cut.png").write_bytes((tmp_path / "rgb.png").read_bytes()[:60])
    with pytest.raises(DaguerreError, match="damaged"):
        read_input(tmp_path / "cut.png")


def test_images_are_resized_to_the_working_size(cat: Image.Image):
    wide = Image.new("RGB", (40, 20), "red")
    wide.paste("blue", (10, 0, 30, 20))
    assert resize(wide, (20, 20), "crop").getcolors() == [(400, (0, 0, 255))]
    assert resize(wide, (20, 20), "stretch").getpixel((1, 1)) == (255, 0, 0)
    padded = resize(wide, (40, 40), "pad")
    assert [padded.getpixel((20, y)) for y in (0, 20, 39)] == [(0, 0, 255)] * 3
    assert resize(Image.new("RGB", (1, 1), "red"), (64, 64), "pad").getcolors() == [(4096, (255, 0, 0))]
    # The image's own size if a model of 512 allows it, else its shape in the model's area; always multiples of 8.
    assert working_size((768, 512), 512, 8) == (768, 512)
    assert working_size((515, 509), 512, 8) == (512, 512)
    assert working_size((4000, 3000), 512, 8) == (592, 440)
    assert working_size((1, 1), 512, 8) == (512, 512)
    assert working_size((4000, 3000), 512, 8, width=400) == (400, 304)
    assert working_size((20000, 1), 512, 8, 64, 64) == (64, 64)
