"""The command line on odd terminals and with odd file names."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import daguerre
from daguerre.atomic_io import atomic_write
from daguerre.errors import DaguerreError
from daguerre.models.latent_diffusion import LatentDiffusion
from daguerre.pipelines.request import Request
from daguerre.weights.catalog import may_be_on_the_hub

TXT2IMG = "txt2img", "a red apple", "--steps", "1"


@pytest.mark.parametrize(
    ("encoding", "line"),
    [("cp1252", ["inspect", "--prompt", "a (red:1.3) café 猫"]), ("cp932", ["models", "--samplers"]), ("ascii", ["txt2img", "--help"])],
)
def test_characters_that_the_terminal_lacks_are_replaced(encoding: str, line: list[str]):
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-m", "daguerre", *line], capture_output=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"?" in done.stdout
    assert len(done.stdout.decode(encoding)) > 20


@pytest.mark.parametrize("length", [246, 255])
def test_a_file_name_can_have_all_bytes_that_the_disk_allows(run, length: int):
    name = "日" * ((length - 4) // 3) + "a" * ((length - 4) % 3) + ".png"
    assert len(name.encode()) == length
    assert run(*TXT2IMG, "--out", name) == (0, f"{name}\n", "")
    assert [path.name for path in Path().iterdir()] == [name]


@pytest.mark.parametrize(
    ("name", "more"), [("a" * 300 + ".png", []), ("a" * 250 + ".png", ["--num-images", "2"]), (f"new/{'a' * 300}/x.png", [])]
)
def test_a_longer_name_is_refused_before_the_work(run, name: str, more: list[str]):
    code, out, err = run(*TXT2IMG, *more, "--out", name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "too long" in err
    assert not list(Path().iterdir())


def test_an_earlier_image_is_not_overwritten_without_out(run):
    assert run(*TXT2IMG)[1] == "a-red-apple-0.png\n"
    first = Path("a-red-apple-0.png").read_bytes()
    assert run(*TXT2IMG, "--sampler", "euler")[1] == "a-red-apple-0-2.png\n"
    assert run(*TXT2IMG, "--num-images", "2")[1].split() == ["a-red-apple-0-3-1.png", "a-red-apple-0-3-2.png"]
    assert (
        run("attention", *TXT2IMG[1:])[1] == run("attention", *TXT2IMG[1:])[1].replace("-2.png", ".png") == "a-red-apple-0-attention.png\n"
    )
    assert Path("a-red-apple-0.png").read_bytes() == first
    assert run(*TXT2IMG, "--out", "a-red-apple-0.png")[1] == "a-red-apple-0.png\n"  # a name that was given is the user's choice


def test_a_second_run_over_a_folder_gets_its_own_folder(run):
    run(*TXT2IMG, "--out", "in/a.png")
    line = "img2img", "in", "a cat", "--steps", "2"
    assert [run(*line)[1], run(*line)[1]] == ["in-img2img/a.png\n", "in-img2img-2/a.png\n"]


@pytest.mark.parametrize("line", ["txt2img {} --steps 1", "txt2img x --negative-prompt {}", "inspect --prompt {}"])
def test_a_prompt_that_is_not_utf8_names_its_byte(run, line: str):
    code, _, err = run(*(word.format(os.fsdecode(b"caf\xe9")) for word in line.split()))
    assert code == 2
    assert "Character 4 of the prompt 'caf\\udce9' is the byte 0xe9, which is not UTF-8" in err


def test_half_a_utf16_pair_is_no_prompt():
    with pytest.raises(DaguerreError, match="half of a UTF-16 pair"):
        Request(prompt=["fine", "smile \ud83d"])  # type: ignore[arg-type]


def test_texts_that_begin_with_a_dash(run):
    code, _, err = run("txt2img", "-a cat", "--steps", "1")
    assert code == 2
    assert "put -- before it, after all options: -- '-a cat'" in err
    assert run("txt2img", "--steps", "1", "--out", "o.png", "--", "-a cat")[0] == 0
    code, _, err = run("txt2img", "a cat", "--negative-prompt", "-ugly")
    assert code == 2
    assert "write --negative-prompt=-ugly." in err
    assert run("txt2img", "a cat", "--steps", "1", "--out", "o.png", "--negative-prompt=-ugly")[0] == 0


@pytest.mark.parametrize("name", ["checkpoints/sd15.safetensors", "models/sd.ckpt", "some folder/model", "models/", "~/x/y", "a//b"])
def test_what_looks_like_a_path_is_not_searched_on_the_hub(run, name: str):
    assert not may_be_on_the_hub(name)
    code, _, err = run(*TXT2IMG, "--model", name)
    assert (code, err.count("\n")) == (2, 1)
    assert name in err


@pytest.mark.parametrize("name", ["owner/name", "owner/name.v1/sub/x.safetensors", "owner/name@main"])
def test_hub_ids(name: str):
    assert may_be_on_the_hub(name)


def test_the_home_folder_is_expanded(run, monkeypatch: pytest.MonkeyPatch, tiny_model: LatentDiffusion):
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    assert daguerre.save(tiny_model, "~/tiny") == Path("home/tiny").absolute()
    assert run(*TXT2IMG, "--model=~/tiny", "--out=~/o.png")[0] == 0
    assert run("inspect", "~/o.png")[0] == 0
    saved = daguerre.generate(daguerre.load("~/tiny"), "a cat", steps=1)[0].save("~/x.png")
    assert saved == Path("home/x.png").absolute()
    with atomic_write("~nobody-here/x.bin") as file:
        file.write(b"x")
    assert sorted(path.name for path in Path().iterdir()) == ["home", "~nobody-here"]
    assert sorted(path.name for path in Path("home").iterdir()) == ["o.png", "tiny", "x.png"]


def test_a_loop_of_links_and_a_deleted_working_directory(run, tmp_path: Path):
    Path("one").symlink_to("two")
    Path("two").symlink_to("one")
    for line in (TXT2IMG, ("reproduce", "a.png")):
        code, _, err = run(*line, "--out", "one/x.png")
        assert (code, err.count("\n")) == (2, 1)
        assert "Unexpected" not in err
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert run(*TXT2IMG) == (1, "", "daguerre: The working directory has been deleted; change to another one.\n")
    os.chdir(tmp_path)
