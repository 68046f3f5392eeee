"""The command `daguerre`: a table of subcommands, each imported only when it is called, and the place where all errors end.

Neither this file nor any `--help` imports torch, so help appears at once.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

import daguerre
from daguerre.errors import DaguerreError, nearest

COMMANDS = {
    "txt2img": "generate images from text",
    "img2img": "change an image by a prompt",
    "inpaint": "regenerate the masked part of an image",
    "outpaint": "extend an image beyond its edges",
    "pix2pix": "edit an image by an instruction",
    "depth2img": "generate images that follow a depth map",
    "upscale": "enlarge an image, usually four times per side",
    "colorize": "add colours to a grey image",
    "variations": "generate images similar to another one",
    "layout": "generate images from boxes or a segmentation map",
    "sample": "sample from a model trained here: DDPM, prior over codes, …",
    "preprocess": "compute the edges or another condition map of an image",
    "attention": "show the attention of each word, or of one position",
    "noise": "add noise to an image, and show what the model predicts",
    "compare": "generate a labelled table over one or two settings",
    "batch": "generate images for each row of a table of prompts",
    "models": "list models, samplers and spacings",
    "shard": "write a folder of images as shards for training",
    "train": "train a model by a recipe",
    "score": "measure how well texts match an image, by CLIP",
    "evaluate": "measure how well a model follows its prompts",
    "reconstruct": "measure what an autoencoder preserves of images",
    "lineage": "show every generation of models on one sheet",
    "inspect": "show the metadata of an image, a checkpoint, a prompt's tokens, or networks",
    "convert": "write a checkpoint in another format",
    "reproduce": "generate a saved image again and compare",
    "serve": "open the studio in a browser, and serve other programs",
}

HELP = """usage: daguerre COMMAND [...]

Stable Diffusion and every generation that led to it, as a small PyTorch library.

commands:
{commands}

  daguerre COMMAND --help    options of a command
  daguerre --version         the version
  daguerre --debug ...       show the traceback of an error

example: daguerre txt2img "a red apple" --out apple.png"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 1 if the work failed, 2 for a wrong command line or value, 130 if interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a terminal or file may have an encoding without our characters
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(commands="\n".join(f"  {name:<12}{summary}" for name, summary in COMMANDS.items())))
        return 0
    if arguments[0] == "--version":
        print(f"daguerre {daguerre.__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return _print_error(f"There is no command {name!r}; choose one of {', '.join(COMMANDS)}.{nearest(name, COMMANDS)}", 2)
    try:
        os.getcwd()
    except FileNotFoundError:
        return _print_error("The working directory has been deleted; change to another one.", 1)
    try:
        import_module(f"daguerre.cli.commands.{name}").main(rest)
    except SystemExit as stop:  # after --help
        return stop.code if isinstance(stop.code, int) else 0
    except KeyboardInterrupt:
        return _print_error("Interrupted; no incomplete file is left.", 130)
    except BrokenPipeError:  # the reader of our output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        from daguerre.cli.parsing import UsageError

        if debug:
            raise
        if isinstance(error, DaguerreError):
            return _print_error(str(error), 2 if isinstance(error, UsageError) else 1)
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return _print_error(f"Unexpected {type(error).__name__}: {first_line}. Run it again with --debug for the traceback.", 1)
    return 0


def _print_error(message: str, code: int) -> int:
    print(f"daguerre: {message}", file=sys.stderr)
    return code
