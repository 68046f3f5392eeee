"""`compare`, `noise`, `attention --self` and the contents of an animation, on the tiny model."""

from pathlib import Path

import pytest
from PIL import Image

import daguerre
from daguerre.pipelines import Request
from daguerre.pipelines.comparison import Axis, compare

FEW = ("--size", "16")


def test_every_image_of_a_comparison_can_be_reproduced(run):
    line = ["compare", "a red apple", "two cats", "--steps", "2", "3", "--out", "new/table.png", *FEW]
    assert run(*line)[:2] == (0, "new/table.png\n")
    out = run("inspect", "new/table.png")[1]
    assert "row 2, column 1:\ntwo cats\nSteps: 2," in out
    for cell in ("1,1", "2, 2"):
        assert run("reproduce", "new/table.png", "--cell", cell)[:2] == (0, "identical\n")
    assert run("reproduce", "new/table.png", "--cell", "2,2", "--out", "cell.png")[1] == "cell.png\nidentical\n"
    assert run("txt2img", "two cats", "--steps", "3", *FEW, "--out", "alone.png")[0] == 0
    assert Image.open("alone.png").tobytes() == Image.open("cell.png").tobytes()
    for arguments, message in (
        (["new/table.png"], "choose one of them with --cell"),
        (["new/table.png", "--cell", "0,1"], "the table has 2 rows and 2 columns"),
        (["new/table.png", "--cell", "x"], "it is ROW,COLUMN"),
        (["cell.png", "--cell", "1,1"], "is no table"),
    ):
        code, out, err = run("reproduce", *arguments)
        assert (code, out) == (2, "")
        assert message in err


def test_prompts_and_consecutive_seeds_share_a_batch(run):
    assert run("compare", "a red apple", "--seed", "4", "5", "--steps", "2", *FEW, "--out", "t.png")[0] == 0
    assert run("reproduce", "t.png", "--cell", "1,2")[1] == "identical\n"
    assert run("compare", "a", "b", "--guidance-scale", "1", "3", "--steps", "2", *FEW, "--out", "u.webp")[0] == 0
    assert run("reproduce", "u.webp", "--cell", "2,1")[1] == "identical\n"


def test_strengths_of_an_input_image_are_compared(run):
    Image.new("RGB", (16, 16), "teal").save("in.png")
    assert run("compare", "a red apple", "--image", "in.png", "--strength", "0", "1", "--steps", "2", "--out", "t.jpg")[0] == 0
    assert "JPEG" in run("reproduce", "t.jpg", "--cell", "1,1")[2]
    assert "strength" in run("inspect", "t.jpg")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a"], "Give several values to one or two settings"),
        (["a", "b", "--steps", "1", "2", "--seed", "1", "2"], "2 of prompt, 2 of steps, 2 of seed"),
        (["a", "--strength", "0.5", "1"], "--strength needs an input image"),
        (["a", "--steps", "1", "0"], "steps is 0"),
        (["a", "--sampler", "euler", "eulr"], "Did you mean 'euler'"),
        (["a", "--sampler", "euler", "heun", "--steps", "2", "--spacing", "karras", "--out", "t.gif"], "t.gif"),
        (["a", "--seed", *map(str, range(401))], "at most 400"),
    ],
)
def test_wrong_comparisons_fail_before_loading(run, arguments, message, monkeypatch):
    monkeypatch.setattr("daguerre.weights.load", lambda *_, **__: pytest.fail("loaded"))
    code, out, err = run("compare", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(Path().iterdir())


def test_too_few_steps_for_a_sampler_fail_before_sampling(run, monkeypatch):
    monkeypatch.setattr("daguerre.pipelines.generation.stream", lambda *_, **__: pytest.fail("sampled"))
    code, _, err = run("compare", "a", "--sampler", "euler", "heun", "--spacing", "simple", "--size", "17")
    assert code == 2
    assert "17 is not a multiple" in err


def test_a_comparison_from_python(tiny_model):
    found = compare(tiny_model, Request(prompt="a red apple", steps=2, width=16, height=16), None, Axis("guidance_scale", (1, 2.5)))
    assert [[image.provenance.request.guidance_scale for image in row] for row in found.images] == [[1, 2.5]]
    assert found.columns.labels == ["guidance 1", "guidance 2.5"]
    assert found._repr_png_().startswith(b"\x89PNG")
    (alone,) = daguerre.generate(tiny_model, "a red apple", steps=2, width=16, height=16, guidance_scale=2.5)
    assert alone.image.tobytes() == found.images[0][1].image.tobytes()


def test_noise_shows_every_timestep_with_and_without_a_prompt(run):
    Image.new("RGB", (50, 40), "teal").save("in.png")
    assert run("noise", "in.png", "--t", "0,500 999", "--size", "32x24", "--out", "n.png")[:2] == (0, "n.png\n")
    assert run("noise", "in.png", "--t", "500", "--size", "32x24", "--prompt", "a red apple")[1] == "in-noise.png\n"
    wide, tall = Image.open("n.png"), Image.open("in-noise.png")
    assert wide.width > 3 * 128
    assert tall.height > 6 * 96
    for arguments, message in (
        (["--t", "1000"], "to 999"),
        (["--size", "33"], "33 is not a multiple of 4"),
        (["--out", "in.png"], "also the input image"),
    ):
        code, out, err = run("noise", "in.png", *arguments)
        assert (code, out) == (2, "")
        assert message in err


def test_missing_loras_of_a_prompt_are_named(run):
    Image.new("RGB", (16, 16), "teal").save("in.png")
    for line in (["compare", "a <lora:ink:1>", "--steps", "1", "2"], ["noise", "in.png", "--t", "9", "--prompt", "a <lora:ink:1>"]):
        code, _, err = run(*line, "--size", "16")
        assert code == 0
        assert "the LoRA 'ink' of the prompt is ignored; give the folder of your LoRAs with --lora-dir" in err


def test_the_self_attention_of_a_position(run):
    code, out, err = run("attention", "a red apple", "--self", "3, 9", "--steps", "2", "--out", "s.png", "--save-overlays")
    assert (code, out.splitlines(), err) == (0, ["s.png", "s-1-all-layers.png", "s-2-8-8-map.png", "s-3-4-4-map.png"], "")
    Image.new("RGB", (32, 16), "teal").save("in.png")
    for arguments, message in (
        (["--self", "32,0"], "outside the image: x is 0 to 31"),
        (["--self", "0,16", "--image", "in.png"], "y is 0 to 15"),
        (["--self", "1,1", "--words", "red"], "exclude each other"),
    ):
        code, out, err = run("attention", "a red apple", *arguments, "--steps", "2")
        assert (code, out) == (2, "")
        assert message in err


def test_an_animation_shows_x0_or_x_t_or_both(run):
    sizes = {}
    for content in ("x0", "x_t", "both"):
        line = [
            "txt2img",
            "a red apple",
            "--steps",
            "3",
            "--out",
            "a.png",
            "--animation",
            f"{content}.webp",
            "--animation-content",
            content,
        ]
        assert run(*line)[0] == 0
        animation = Image.open(f"{content}.webp")
        sizes[content] = animation.size, getattr(animation, "n_frames", 1)
    assert sizes["x0"] == sizes["x_t"] == ((32, 32), 3)
    assert sizes["both"][0][0] > 2 * 128
    first = [Image.open(f"{content}.webp").convert("RGB").tobytes() for content in ("x0", "x_t")]
    assert first[0] != first[1]
    code, _, err = run("txt2img", "a", "--animation-content", "both")
    assert code == 2
    assert "give its file with --animation" in err
