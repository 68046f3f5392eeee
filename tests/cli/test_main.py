"""The command line: instant help, generation, reproduce, convert; complete files or none, and exit codes."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import daguerre
from daguerre import atomic_io as disk
from daguerre.cli.main import main
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.weights.vocabulary import Vocabulary

Run = Callable[..., tuple[int, str, str]]


def test_help_imports_no_torch():
    probe = """
import sys
from daguerre.cli.main import COMMANDS, main
from daguerre.training.recipes import RECIPES
lines = [["--help"], ["--version"], ["models"], *([name, "--help"] for name in COMMANDS)]
for line in lines + [["train", name, "--help"] for name in RECIPES]:
    if main(line) or "torch" in sys.modules:
        sys.exit(f"{line} failed or imported torch")
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_list_of_commands_is_instant():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    help_text = subprocess.run([sys.executable, "-m", "daguerre", "--help"], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which other programs do not lengthen much; 0.1 s on an idle machine.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 0.3
    assert "txt2img" in help_text


def test_help_is_grouped(run: Run):
    _, out, _ = run("txt2img", "--help")
    for group in ("positional arguments", "options", "image options", "sampling options", "model options", "output options"):
        assert re.search(rf"^\W+{group}\W*$", out, re.MULTILINE), group
    assert "--negative-prompt" not in run("variations", "--help")[1]
    assert "--size" not in run("upscale", "--help")[1]


def test_short_options(run: Run):
    line = "txt2img", "x", "-n", "2", "-W", "48", "-H", "16", "-s", "3", "-m", "tiny", "-o", "x.png", "--steps", "1"
    assert run(*line) == (0, "x-1.png\nx-2.png\n", "")
    assert Image.open("x-1.png").size == (48, 16)
    assert json.loads(Image.open("x-1.png").info["daguerre"])["request"]["seed"] == 3


def test_one_prompt_gives_one_image_with_its_request(run: Run):
    code, out, err = run("txt2img", "a red apple", "--steps", "3", "--seed", "7", "--out", "apple.png")
    assert (code, out, err) == (0, "apple.png\n", "")
    code, out, _ = run("inspect", "apple.png", "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["width"], report["height"]) == (32, 32)
    assert report["daguerre"]["request"]["seed"] == 7
    assert report["parameters"].startswith("a red apple\nSteps: 3, Sampler: DPM++ 2M")
    code, out, _ = run("inspect", "apple.png")
    assert "a red apple\nSteps: 3" in out


def test_several_prompts_also_give_a_labelled_grid(run: Run):
    code, out, _ = run(
        "txt2img", "a red apple", "a pizza", "--steps", "2", "--out", "new/both.png", "--animation", "animation.webp", "--preview", "p.png"
    )
    assert code == 0
    assert out.splitlines() == ["new/both-1.png", "new/both-2.png", "new/both.png", "animation.webp"]
    assert Image.open("new/both-1.png").size == (32, 32)
    assert Image.open("new/both.png").width > 256
    assert Image.open("animation.webp").n_frames == 2
    assert Image.open("p.png").size == (8, 8)


def test_num_images_size_seed_and_grid(run: Run):
    code, out, _ = run("txt2img", "a red apple!", "--steps", "2", "--num-images", "2", "--size", "48x16", "--grid", "--seed", "3")
    assert code == 0
    assert out.splitlines() == ["a-red-apple-3-1.png", "a-red-apple-3-2.png", "a-red-apple-3.png"]
    assert Image.open("a-red-apple-3-2.png").size == (48, 16)
    assert run("txt2img", "x", "--steps", "1", "--seed", "-1", "--out", "x.png")[0] == 0
    assert 0 <= json.loads(Image.open("x.png").info["daguerre"])["request"]["seed"] < 2**32


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_reproduce_gives_the_same_image(run: Run, name: str):
    assert run("txt2img", "a red apple", "a pizza", "--steps", "2", "--sampler", "euler_a", "--out", name)[0] == 0
    single = Path(name).with_stem("a-2")
    assert run("reproduce", name) == (0, "identical\n", "")
    code, out, _ = run("reproduce", str(single), "--out", "again.png")
    assert (code, out) == (0, "again.png\nidentical\n")
    if name == "a.png":
        assert Path("again.png").read_bytes() == single.read_bytes()


def test_reproduce_reports_a_different_image(run: Run, make_tiny_model: Callable[..., LatentDiffusion]):
    assert run("txt2img", "a red apple", "--steps", "2", "--out", "a.png")[0] == 0
    daguerre.save(make_tiny_model(seed=5), "other")
    code, out, err = run("reproduce", "a.png", "--model", "other")
    assert (code, out) == (1, "")
    assert "came out differently (by up to" in err
    assert "model was tiny and is other" in err


def test_another_autoencoder_changes_the_image_and_must_fit(run: Run, folder: Path, make_tiny_model: Callable[..., LatentDiffusion]):
    daguerre.save(make_tiny_model(seed=5), "other")
    for name, options in (("a.png", ()), ("b.png", ("--vae", "other")), ("c.png", ("--vae", str(folder / "vae")))):
        assert run("txt2img", "x", "--steps", "1", "--out", name, *options)[0] == 0
    a, b, c = (np.asarray(Image.open(name)) for name in ("a.png", "b.png", "c.png"))
    assert np.array_equal(a, c)
    assert not np.array_equal(a, b)
    assert "was generated with the model 'tiny + other', hash " in run("reproduce", "b.png")[2]
    assert run("reproduce", "b.png", "--model", "tiny", "--vae", "other") == (0, "identical\n", "")
    config = json.loads(Path("other/vae/config.json").read_text())
    Path("other/vae/config.json").write_text(json.dumps({**config, "latent_channels": 5}))
    assert "does not fit a AutoencoderKL" in run("txt2img", "x", "--vae", "other")[2]


def test_models_and_samplers_are_listed(run: Run, folder: Path):
    code, out, _ = run("models")
    assert code == 0
    head, row, *_, last = out.splitlines()
    assert head.split() == ["model", "kind", "images", "on", "disk", "folder"]
    assert row.split() == ["tiny", "(default)", "StableDiffusionPipeline", "32x32", row.split()[-3], "MiB", str(folder)]
    assert last.startswith("--model also takes a folder")
    code, out, _ = run("models", "--samplers")
    assert code == 0
    assert all(name in out for name in ("dpmpp_2m", "euler_a", "trailing", "karras"))


def test_words_that_a_vocabulary_lacks_are_named_in_one_line(run: Run, folder: Path):
    code, out, err = run("models", "--vocabulary")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "vocabulary.json" in err
    assert run("txt2img", "a photograph riding", "--steps", "2")[2] == ""
    Vocabulary.of(["cat", "horse", "horse racing", "person biking"], ["a photo"]).write(folder)
    try:
        code, out, err = run("models", "tiny", "--vocabulary")
        assert (code, err) == (0, "")
        assert out.splitlines() == ["cat", "horse", "horse racing", "person biking", "other words: a, photo"]
        code, _, err = run("txt2img", "a photograph", "a riding [cat:hores:0.5], a photograph", "--steps", "2", "--num-images", "2")
        assert (code, err.count("\n")) == (0, 1)
        assert '"photograph" (nearest: photo), "riding" (nearest: horse racing, person biking), "hores" (nearest: horse)' in err
        assert run("txt2img", "A photo: cat, horse!", "--steps", "2")[2] == ""
    finally:
        (folder / "vocabulary.json").unlink()


def test_a_checkpoint_is_inspected_and_converted_and_opens(run: Run, folder: Path):
    code, out, _ = run("inspect", str(folder), "--json")
    report = json.loads(out)
    assert code == 0
    assert (report["prediction_type"], report["missing_keys"], report["unmatched_keys"]) == ("v", [], [])
    assert set(report["parts"]) == {"unet", "vae", "text_encoder"}
    assert run("convert", str(folder), "again") == (0, "again\n", "")
    for model, name in ((str(folder), "a.png"), ("again", "b.png")):
        assert run("txt2img", "a red apple", "--steps", "2", "--model", model, "--out", name)[0] == 0
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(Image.open("b.png")))
    assert "family" in run("inspect", "again")[1]


@pytest.mark.parametrize(("name", "written"), [("fp16", "float16"), ("float16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_a_checkpoint_is_converted_to_a_precision_by_either_of_its_names(run: Run, folder: Path, name: str, written: str):
    assert run("convert", str(folder), "other.safetensors", "--dtype", name) == (0, "other.safetensors\n", "")
    assert json.loads(run("inspect", "other.safetensors", "--json")[1])["dtype"] == written


def test_a_full_disk_is_reported_and_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch):
    def no_space(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.os, "fsync", no_space)
    code, out, err = run("txt2img", "x", "--steps", "1", "--out", "apple.png")
    assert (code, out) == (1, "")
    assert err.startswith("daguerre: Cannot write 'apple.png': No space left on device.")
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_an_unexpected_error_is_one_line_and_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("daguerre.cli.generation.open_any", lambda *_, **__: 1 / 0)
    code, _, err = run("txt2img", "x")
    assert code == 1
    assert err == "daguerre: Unexpected ZeroDivisionError: division by zero. Run it again with --debug for the traceback.\n"
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "txt2img", "x"])


def test_an_interruption_ends_quietly(run: Run, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("daguerre.cli.generation.open_any", interrupt)
    code, _, err = run("txt2img", "x")
    assert (code, err) == (130, "daguerre: Interrupted; no incomplete file is left.\n")


def test_a_first_image_does_not_import_the_compiler(folder: Path, tmp_path: Path):
    """torch's compiler and sympy take seconds to import, and a first image needs neither."""
    command = ["txt2img", "x", "--model", str(folder), "--steps", "2", "--out", "x.png"]
    probe = f"""
import sys
from daguerre.cli.main import main
code = main({command})
sys.exit(", ".join({{"torch._dynamo", "sympy", "accelerate", "matplotlib"}} & set(sys.modules)) or code)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "x.png\n", "")


def test_the_exit_code_reaches_the_shell(tmp_path: Path):
    command = [sys.executable, "-m", "daguerre", "txt2img", "x", "--steps", "-3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "daguerre: steps is -3; it must be 1 or more.\n")
