"""Every option of every command rejects a wrong value: exit code 2, one line on stderr, nothing on stdout, nothing written.

The options come from the help texts, so a new option needs a row in `WRONG` (or in `OWN`, for one command).
"""

import re
from pathlib import Path

import pytest
from PIL import Image

from daguerre.cli.main import COMMANDS
from daguerre.training.recipes import RECIPES

# A valid command line without options, for each command.
BASES = {
    "txt2img": ["a cat", "--hires-scale=1.5"],
    "img2img": ["cat.png", "a cat"],
    "inpaint": ["cat.png", "mask.png", "a cat"],
    "outpaint": ["cat.png", "a cat", "--right=8"],
    "pix2pix": ["cat.png", "make it winter"],
    "depth2img": ["mask.png", "a hill"],
    "upscale": ["cat.png"],
    "variations": ["cat.png"],
    "colorize": ["cat.png"],
    "layout": ["25 0 0 1 1"],
    "sample": ["--model=tiny", "--complete=cat.png"],
    "attention": ["a cat"],
    "noise": ["cat.png"],
    "score": ["cat.png", "a cat"],
    "compare": ["a cat", "a dog"],
    "batch": ["table.csv", "--out=results"],
    "shard": ["images", "--out=results"],
    "models": [],
    "lineage": [],
    "evaluate": [],
    "reconstruct": ["shapes", "--model=tiny"],
    "inspect": ["--prompt=a cat"],
    "preprocess": ["canny", "cat.png"],
    "convert": ["tiny", "out.safetensors"],
    "reproduce": ["cat.png"],
    "serve": [],
    **{f"train {name}": ["--data=shapes"] for name in RECIPES},
    **{f"train {name}": [] for name in ("emoji", "shapes", "clip-scorer")},
    "train text-to-image": ["--data=images"],
    "train lora": ["--data=images"],
    "train dreambooth": ["--data=images", "--instance-prompt=a zorble"],
    "train textual-inversion": ["--data=images", "--word=mycat"],
    "train controlnet": ["--data=images", "--control=canny"],
    "train prior": ["--data=shapes", "--first-stage=images"],
    "train ldm": ["--data=shapes", "--first-stage=images"],
}

# A wrong value for each option and a part of the message; None is a missing value, which is the only wrong one of a free text.
WRONG: dict[str, tuple[str | None, str]] = {
    "--actors": ("0", "--actors is 0"),
    "--base": ("none.safetensors", "none.safetensors"),
    "--rank": ("0", "--rank is 0"),
    "--animation": ("a.mp4", "a.mp4"),
    "--complete": ("none.png", "none.png"),
    "--runs": (None, "Missing value"),
    "--class": (None, "Missing value"),
    "--data-dir": (None, "Missing value"),
    "--controlnet": ("none.safetensors", "none.safetensors"),
    "--control-image": ("none.png", "none.png"),
    "--image-encoder": ("none", "--image-encoder needs an --ip-adapter"),
    "--ip-adapter": ("none.bin:0.5", "There is no IP-Adapter 'none.bin'"),
    "--ip-image": ("cat.png", "0 IP-Adapters and 1 --ip-image"),
    "--t2i-adapter": ("none.pth:0.5:0-0.7", "There is no T2I-Adapter 'none.pth'"),
    "--depth": ("none.png", "none.png"),
    "--device": ("abacus", "The device 'abacus'"),
    "--embedding": ("none.pt", "none.pt"),
    "--embedding-dir": ("none", "none"),
    "--eta": ("2", "eta is 2"),
    "--clip": ("none", "none"),
    "--clip-skip": ("0", "clip_skip is 0"),
    "--dynamic-threshold": ("2", "dynamic_threshold is 2"),
    "--guidance-interval": ("0.8:0.1", "guidance_interval is (0.8, 0.1)"),
    "--guidance-rescale": ("2", "guidance_rescale is 2"),
    "--guidance-scale": ("nan", "is nan"),
    "--height": ("0", "height is 0"),
    "--hires-scale": ("20", "up to 8"),
    "--hires-strength": ("2", "strength"),
    "--host": ("0.0.0.0", "needs a token"),
    "--image": ("none.png", "none.png"),
    "--image-guidance-scale": ("-1", "image_guidance_scale is -1"),
    "--input": ("none.png", "none.png"),
    "--invert": ("none.png", "none.png"),
    "--invert-to": ("none.png", "give it with --invert"),
    "--keep": ("1", "keep is 1"),
    "--lora": ("none.safetensors:0.5", "none.safetensors"),
    "--lora-dir": ("none", "none"),
    "--map": ("none.png", "none.png"),
    "--mask": ("none.png", "none.png"),
    "--mask-blur": ("-1", "mask_blur is -1"),
    "--crop-padding": ("-1", "crop_padding is -1"),
    "--model": ("tinny", "tinny"),
    "--negative-prompt": (None, "Missing value"),
    "--noise": ("900", "noise is 900"),
    "--num-images": ("0", "num_images is 0"),
    "--out": ("apple.gif", "apple.gif"),
    "--port": ("0", "--port is 0"),
    "--preset": ("lightnig-4", "Did you mean 'lightning-4'"),
    "--preview": ("apple.gif", "apple.gif"),
    "--prompt": (None, "Missing value"),
    "--refiner": ("none", "none"),
    "--refiner-switch-at": ("2", "is 2.0"),
    "--sampler": ("eulr_a", "Did you mean"),
    "--seed": ("-7", "seed is -7"),
    "--self": ("40", "--self is '40'; it is X,Y"),
    "--samples": ("0", "--samples is 0"),
    "--shard-size": ("nan", "--shard-size is nan"),
    "--shard": ("4/4", "--shard is '4/4'"),
    "--size": ("big", "--size is 'big'"),
    "--spacing": ("traling", "Did you mean 'trailing'"),
    "--steps": ("0", "steps is 0"),
    "--strength": ("1.5", "strength is 1.5"),
    "--t": ("0,a", "--t is '0,a'"),
    "--temperature": ("-1", "emperature is -1"),
    "--token": ("", "--token is empty"),
    "--tokens": (None, "Missing value"),
    "--threads": ("0", "threads is 0"),
    "--top-k": ("0", "top_k is 0"),
    "--top-p": ("2", "top_p is 2"),
    "--vae": ("none", "none"),
    "--variant": (None, "Missing value"),
    "--variation-seed": ("8", "give both"),
    "--variation-strength": ("0.5", "give both"),
    "--width": ("0", "width is 0"),
}

# Options with a different check in one command.
OWN: dict[tuple[str, str], tuple[str | None, str]] = {
    ("batch", "--out"): ("mask.png", "is a file"),
    ("shard", "--out"): ("mask.png", "is a file"),
    ("layout", "--map"): ("mask.png", "give one of the two"),
    ("evaluate", "--model"): ("tinny", "tinny"),
    ("evaluate", "--num-images"): ("0", "num_images is 0"),
    ("reconstruct", "--model"): ("tinny", "tinny"),
    ("lineage", "--out"): (None, "Missing value"),
    ("sample", "--invert"): ("cat.png", "--invert excludes"),
    ("attention", "--mask"): ("mask.png", "need an input image"),
    ("attention", "--strength"): ("1.5", "need an input image"),
    ("compare", "--strength"): ("1.5", "needs an input image"),
    ("outpaint", "--left"): ("-1", "none may be below 0"),
    ("outpaint", "--top"): ("-1", "none may be below 0"),
    ("outpaint", "--right"): ("-1", "none may be below 0"),
    ("outpaint", "--bottom"): ("-1", "none may be below 0"),
}

AFTER_LOADING = {("attention", "--words")}  # the model's tokenizer decides what a word is; tests/cli/test_attention_command.py has it


def options_of(help_text: str) -> dict[str, str]:
    """The long options of a help text with the names of their values; "" for a switch."""
    found = re.findall(r"^[│ ] {1,2}?(?:-\w(?: [^,\n]+)?, )?(--[\w.-]+)((?:, --no-[\w-]+)|(?: \S+)?)", help_text, re.MULTILINE)
    return {name: "" if value.startswith(",") else value.strip(" │|") for name, value in found if name != "--help"}


def row(command: str, option: str, value: str) -> tuple[str | None, str]:
    """The wrong value of an option and a part of its message: from the tables, else from the name of its value."""
    if (command, option) in OWN:
        return OWN[command, option]
    if value.startswith("{"):
        return "nonsense", "Invalid choice 'nonsense'"
    if command.startswith("train") or command in ("evaluate", "reconstruct", "reproduce"):
        return "many" if value in ("INT", "FLOAT") else None, option
    if option in WRONG:
        return WRONG[option]
    raise AssertionError(f"{command} has a new option {option} {value}; add a row to WRONG in {__file__}")


@pytest.mark.parametrize("command", BASES)
def test_every_option_rejects_a_wrong_value(run, monkeypatch, command):
    Image.new("RGB", (32, 32), "teal").save("cat.png")
    mask = Image.new("L", (32, 32))
    mask.paste(255, (8, 8, 24, 24))  # a mask of the whole image gives a note
    mask.save("mask.png")
    Path("table.csv").write_text("prompt\na cat\n")
    Path("images").mkdir()
    work = "weights.load", "weights.convert.convert", "evaluation.evaluate.run", "evaluation.reconstruct.run", "training.recipes.Recipe.run"
    for name in work:
        monkeypatch.setattr(f"daguerre.{name}", lambda *_, **__: pytest.fail("the work began"), raising=False)
    before = sorted(Path().rglob("*"))
    code, help_text, _ = run(*command.split(), "--help")
    assert code == 0
    options = options_of(help_text)
    assert options
    for option, value in options.items():
        if not value or value.startswith("[") or (command, option) in AFTER_LOADING:  # a switch; any number of paths, even none
            continue
        wrong, message = row(command, option, value)
        arguments = [argument for argument in BASES[command] if not argument.startswith(f"{option}=")]
        code, out, err = run(*command.split(), *arguments, option if wrong is None else f"{option}={wrong}")
        assert (code, out, err.count("\n")) == (2, "", 1), (option, wrong, code, out, err)
        assert message in err, (option, wrong, err)
    assert sorted(Path().rglob("*")) == before


def test_every_command_is_in_the_table():
    assert {*COMMANDS} - {"train"} | {f"train {name}" for name in RECIPES} == {*BASES}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("txt2im x", "Did you mean 'txt2img'"),
        ("txt2img", "There is no prompt"),
        ("txt2img x --stps 3", "There is no option --stps. Did you mean '--steps'?"),
        ("txt2img x --steps many", "'many' is not a whole number"),
        ("txt2img x --seed", "Missing value for argument '-s/--seed'"),
        ("txt2img x --size 64 --width 32", "give one of the two forms"),
        ("txt2img x --out /dev/null/apple.png", "Cannot write '/dev/null/apple.png': /dev/null is not a folder"),
        ("convert", "Missing: SOURCE, TARGET"),
        ("convert tiny x.safetensors extra", "Unexpected argument extra"),
        ("convert none x.safetensors", "There is no model 'none'"),
        ("convert tiny x.safetensors --ema --no-ema", "exclude each other"),
        ("inspect none.png", "Cannot read 'none.png': No such file"),
        ("inspect", "Give either the file"),
        ("reproduce none.png", "there is no such file"),
        ("models tiny", "give --vocabulary"),
        ("models none --vocabulary", "There is no model 'none'"),
        ("models --samplers --vocabulary", "either --samplers or --vocabulary"),
        ("train emojy", "Did you mean 'emoji'"),
        ("train vae --data nowhere", "There is no directory 'nowhere'"),
        ("train ddpm --data shapes --shard-cache-size 0", "--shard-cache-size is 0 GB"),
        ("train", "The first argument of train is the recipe"),
        ("train --seed 2 shapes", "The first argument of train is the recipe"),
        ("variations cat.png --negative-prompt dog", "There is no option --negative-prompt"),
        ("upscale cat.png --size 64", "There is no option --size"),
        ("reconstruct shapes --model tiny --interpolate-to b.png", "needs two image files"),
        ("reconstruct shapes --model tiny --unseen nowhere", "no folder 'nowhere'"),
        ("reconstruct shapes --model tiny --random=-1", "random is -1"),
    ],
)
def test_a_wrong_command_line_gives_one_line(run, line, message):
    code, out, err = run(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("txt2img x --model someone/something --offline", "someone/something"),
        ("txt2img x --vae other", "does not fit"),
    ],
)
def test_a_failure_of_the_work_exits_with_one(run, line, message):
    Path("other").mkdir()
    Path("other/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    code, out, err = run(*line.split())
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err or "other" in err
