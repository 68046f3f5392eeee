"""`daguerre attention`: a sheet per image and an overlay per word, for every task; and the output of `inspect` and `reproduce`."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from daguerre.cli.commands import attention
from daguerre.cli.commands.txt2img import Txt2ImgOptions
from daguerre.cli.parsing import parse_options
from daguerre.pipelines.metadata.readers import ForeignMetadata
from daguerre.pipelines.metadata.write import Provenance, write_image_with_metadata
from daguerre.pipelines.request import Request, with_fields
from daguerre.pipelines.tasks import Hires


def test_each_image_gets_a_sheet(run):
    code, out, err = run("attention", "a red apple", "a pizza", "--steps", "2", "--out", "new/seen.png")
    assert (code, out.splitlines(), err) == (0, ["new/seen-1.png", "new/seen-2.png"], "")
    assert Image.open("new/seen-1.png").width > 2 * 192


def test_overlays_of_selected_words_are_saved(run):
    code, out, _ = run("attention", "a Red apple", "--steps", "2", "--out", "seen.png", "--save-overlays", "--words", "red", "apple")
    assert (code, out.splitlines()) == (0, ["seen.png", "seen-1-red.png", "seen-2-apple.png"])
    assert Image.open("seen-1-red.png").size == (32, 32)


def test_each_sheet_shows_the_selected_words_that_its_prompt_has(run):
    code, out, _ = run(
        "attention", "a red apple", "a [pizza:cake:1]", "--steps", "2", "--out", "s.png", "--save-overlays", "--words", "red", "cake"
    )
    assert (code, out.splitlines()) == (0, ["s-1.png", "s-1-1-red.png", "s-2.png", "s-2-1-cake.png"])


def test_img2img_and_inpainting_have_sheets_too(run):
    Image.new("RGB", (32, 32), "teal").save("given.png")
    Image.new("L", (32, 32), 255).save("mask.png")
    for more in ((), ("--mask", "mask.png"), ("--strength", "0.5")):
        code, out, err = run("attention", "a red apple", "--steps", "4", "--image", "given.png", "--out", "seen.png", *more)
        assert (code, out, err) == (0, "seen.png\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a red apple", "--words", "aple"], "has no word 'aple'; it has a, red, apple. Did you mean 'apple'?"),
        ([""], "The prompt has no words"),
        (["x", "--mask", "m.png"], "give it with --image"),
        (["x", "--out", "a.gif"], "a.gif"),
        (["x", "--image", "none.png"], "none.png"),
    ],
)
def test_wrong_values_fail_before_sampling(run, arguments, message, monkeypatch):
    monkeypatch.setattr(attention, "generate_with_progress", lambda *_: pytest.fail("sampled"))
    code, out, err = run("attention", *arguments, "--steps", "1")
    assert (code, out) == (2, "")
    assert message in err
    assert not list(Path().iterdir())


def test_inspect_explains_a_prompt(run):
    code, out, _ = run("inspect", "--prompt", "a (red:1.2) [apple|pizza]", "--steps", "4")
    assert code == 0
    assert "weight × 1.2" in out
    assert "steps 1, 3: 'a' 'red' × 1.2 'apple'" in out
    code, out, err = run("inspect", "--prompt", "a (red:1.2.3)")
    assert (code, out) == (2, "")
    assert err.splitlines()[-2:] == ["a (red:1.2.3)", "       ^ here"]


def test_inspect_prints_how_an_image_is_made(run):
    request = Request(prompt="a fox", steps=5, sampler="euler", spacing="karras", guidance_scale=3.0, seed=9, task=Hires(scale=2.0))
    with open("fox.png", "wb") as file:
        write_image_with_metadata(file, Image.new("RGB", (8, 8)), ".png", Provenance(request, 0, "tiny", "0", "2", "cpu", "float32"))
    code, out, _ = run("inspect", "fox.png")
    assert code == 0
    rows = {line.split("  ")[1]: " ".join(line.split()) for line in out[out.index("how it is made:") :].splitlines()[1:]}
    assert rows["seed"] == "seed 9"
    assert rows["sampler"] == "sampler euler, 5 steps from UNet, noise, schedule"
    assert rows["hires fix"] == "hires fix ×2, strength 0.55, lanczos from sampler, UNet"
    assert rows["decode"] == "decode from hires fix"


def test_inspect_shows_the_command_for_another_programs_image(run):
    text = "a fox\nNegative prompt: rain\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Clip skip: 2"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save("theirs.png", pnginfo=chunks)
    code, out, _ = run("inspect", "theirs.png")
    assert code == 0
    assert "daguerre txt2img 'a fox' --size 512x512 --negative-prompt rain --steps 20 --sampler euler_a --guidance-scale 7 --seed 1" in out
    assert "--clip-skip 2" in out
    assert "no request" in run("reproduce", "theirs.png")[2]


@pytest.mark.parametrize(
    "more",
    [
        {
            "negative_prompt": "rain, -snow",
            "steps": 30,
            "sampler": "dpmpp_2m_karras",
            "spacing": "karras",
            "guidance_scale": 6.5,
            "seed": 42,
        },
        {"sampler": "ddim", "eta": 0.5, "width": 96, "height": 64, "negative_prompt": "-rain"},
        {"prompt": "--a fox"},
    ],
)
def test_the_command_for_another_programs_image_makes_the_same_request(more):
    foreign = ForeignMetadata("a program", {"prompt": "a (red:1.2) 'fox'\n", **more}, None, {})
    command, name, *arguments = shlex.split(foreign.command())
    assert (command, name) == ("daguerre", "txt2img")
    assert parse_options(Txt2ImgOptions, arguments, "txt2img").request() == with_fields(Request(), foreign.request)


def test_reproduce_finds_a_trained_model_by_its_path(run, folder):
    shutil.copytree(folder, "runs/mine/model")
    assert run("txt2img", "x", "--steps", "1", "--model", "runs/mine/model", "--out", "a.png")[0] == 0
    assert run("reproduce", "a.png")[:2] == (0, "identical\n")
    Path("runs/mine").rename("moved")
    err = run("reproduce", "a.png")[2]
    assert "was generated with the model 'model' from 'runs/mine/model', hash " in err
    assert "--model" in err
    assert run("reproduce", "a.png", "--model", "moved/model")[:2] == (0, "identical\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_images": 10**9}, "1000000000 images"), ({"steps": 10**9}, "1000000000 steps"), ({"width": 4096}, "was changed later")],
)
def test_reproduce_refuses_a_request_that_would_run_for_days(run, changes, message):
    assert run("txt2img", "x", "--steps", "1", "--out", "a.png")[0] == 0
    saved = json.loads(Image.open("a.png").info["daguerre"])
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("daguerre", json.dumps({**saved, "request": {**saved["request"], **changes}}))
    Image.open("a.png").save("b.png", pnginfo=chunks)
    assert message in run("reproduce", "b.png")[2]
