"""Every `daguerre` command in README and docs parses; those that need only the embedded model and images also run, with a tiny model."""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
from PIL import Image

from daguerre.cli.main import COMMANDS, main
from daguerre.cli.parsing import parse_options

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
RUNNABLE = {"txt2img", "img2img", "inpaint", "outpaint", "attention", "models", "inspect"}
NEEDS_FILES = ("--model", "-m", "--vae", "--refiner", "--hash", "--vocabulary", "--lora", "--embedding")
TRAINED_FOR = ("pix2pix", "depth2img", "upscale", "variations", "colorize")


def commands_of(page: Path) -> list[list[str]]:
    """The commands in the code blocks of a page, without the word `daguerre`."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^( *)```(?:\w*)\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL)
    joined = re.sub(r"\\\n\s*", " ", "\n".join(block for _, block in blocks))
    lines = re.findall(r"^\s*(?:\$ )?daguerre (.*)$", joined, re.MULTILINE)
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] in COMMANDS]


COMMAND_LINES = {shlex.join(words): words for page in PAGES for words in commands_of(page)}


class Parsed(BaseException):
    """Raised in place of running a command."""


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_a_documented_command_parses(line: str, monkeypatch: pytest.MonkeyPatch):
    def parse(*arguments: object) -> None:
        parse_options(*arguments)
        raise Parsed

    words = COMMAND_LINES[line]
    monkeypatch.setattr(import_module(f"daguerre.cli.commands.{words[0]}"), "parse_options", parse)
    if "--help" in words or words == ["train"]:
        return
    with pytest.raises(Parsed):
        pytest.fail(f"exit code {main(words)}")


def test_documented_commands_run(run):
    for line, words in COMMAND_LINES.items():
        if words[0] not in RUNNABLE or any(word.split("=")[0] in NEEDS_FILES for word in words) or any("/" in word for word in words):
            continue
        if words[0] == "inspect" and "--prompt" not in words:
            continue
        for word in words[1:]:
            if word.endswith((".png", ".jpg", ".webp")) and not Path(word).exists():
                clear = "alpha" in words and word == words[1]
                Image.new("RGBA" if clear else "L" if "mask" in word else "RGB", (32, 32), (0, 0, 0, 0) if clear else "white").save(word)
        if any(not word.startswith("-") and re.fullmatch(r"[\w-]+", word) and words[0] in ("img2img", "inpaint") for word in words[1:2]):
            continue  # a folder of images
        sized = [word for i, word in enumerate(words) if word != "--size" and words[i - 1] != "--size"]
        steps = [] if words[0] == "models" else ["--steps", "10" if "--fast" in words else "4"]
        code, _, err = run(*sized, *steps)
        assert code == 0 or "^ here" in err, (line, err)  # the page shows one syntax error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_names_the_hub_id_of_the_model_that_it_needs(page: Path):
    if any(words[0] in TRAINED_FOR for words in commands_of(page)):
        assert re.search(r"\b[\w.-]+/[\w.-]+", " ".join(word for words in commands_of(page) for word in words if "/" in word))
