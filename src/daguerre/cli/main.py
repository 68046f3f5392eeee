"""The command `daguerre`: one table of subcommands, each loaded only when it is called, and one place where errors end.

Neither this file nor a command's help imports torch, so that asking costs a fraction of a second; only the help of those recipes of `train`
that are told a network's configuration does.
"""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import daguerre
from daguerre.errors import DaguerreError, nearest

COMMANDS = {
    "txt2img": "make pictures from words",
    "img2img": "draw over a picture",
    "inpaint": "draw the masked part of a picture anew",
    "outpaint": "continue a picture beyond its edges",
    "pix2pix": "change a picture as an instruction says",
    "depth2img": "make pictures as near and as far as a map says",
    "upscale": "draw a picture with four times its sides",
    "variations": "make pictures that mean what another one means",
    "layout": "make pictures with things in their places, by boxes or a map",
    "sample": "draw pictures code by code, by a class, a text, a map, or from half a picture on",
    "attention": "show where the model looks for each word",
    "models": "list the models inside, or the samplers and spacings",
    "train": "train a model by a recipe",
    "evaluate": "measure how well a model answers its prompts",
    "reconstruct": "show what an autoencoder keeps of pictures",
    "inspect": "tell what a picture or a checkpoint says of itself",
    "convert": "write a checkpoint in another form",
    "reproduce": "make a saved picture again and compare",
}

# How often a thread that is done looks whether the others are, before it sleeps. By default it looks for milliseconds, and where another
# program keeps one core busy, threads that only look keep those that work from it: a picture of three seconds takes forty.
SPINS = "10000"

HELP = """usage: daguerre COMMAND [...]

Stable Diffusion and every generation that led to it, small enough to read.

commands:
{commands}

  daguerre COMMAND --help    what a command takes
  daguerre --version         the version
  daguerre --debug ...       show where an error came from

example: daguerre txt2img "a red apple" --out apple.png"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code: 0, 1 for a failure, 2 for wrong usage, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
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
        return _print_error(f"There is no command {name!r}; there are {', '.join(COMMANDS)}.{nearest(name, COMMANDS)}", 2)
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # read when PyTorch is imported, which only commands do
    try:
        import_module(f"daguerre.cli.commands.{name}").main(rest)
    except SystemExit as stop:  # the argument parser has said what it had to say
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        return _print_error("Interrupted; nothing half-written is left.", 130)
    except BrokenPipeError:  # whoever reads our output has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        if isinstance(error, DaguerreError):
            return _print_error(str(error), 1)
        first_line = (str(error).strip() or "no message").splitlines()[0]
        return _print_error(f"Unexpected {type(error).__name__}: {first_line}. Run it again with --debug to see where.", 1)
    return 0


def _print_error(sentence: str, code: int) -> int:
    print(f"daguerre: {sentence}", file=sys.stderr)
    return code
