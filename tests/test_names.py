"""Names and words: one public name has one meaning, docs and code use the field's words, folders and files stay small."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import daguerre
from daguerre.cli.main import COMMANDS, main
from daguerre.training.recipes import RECIPES

PACKAGE = Path(daguerre.__file__).parent
ROOT = Path(__file__).parent.parent
SHARED_NAMES = {
    "log",  # the logger of a module
    "main",  # every command
    "run",  # every recipe, command and report
}
FORBIDDEN = re.compile(
    r"(?<![a-z])(told|(?<!active )voices?|heeds?|hears?|anew|beside|shall|kin|dear|glance|sparing)(?![a-z])|in_turns", re.IGNORECASE
)
DATA_TABLES = {"names.py", "things.py"}  # emoji names contain all kinds of words
STATE_DICT_KEYS = re.compile(r"self\.told\b")  # the embedding of classes in saved pixel priors
MAX_FILES = 14
ONE_FILE_EACH = {"cli/commands", "models"}  # one file per command, and per network
MAX_LINES = 420
DOCS = [*ROOT.glob("README*"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md"), *PACKAGE.rglob("*.md")]


def words_in(text: str) -> list[str]:
    """The forbidden words of a text, also as parts of snake_case and CamelCase names."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", STATE_DICT_KEYS.sub("", text))
    return [match[0] for match in FORBIDDEN.finditer(spaced)]


def test_no_public_name_is_defined_twice():
    modules = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [node.name] if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            stored = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            names += [name.id for name in stored if isinstance(name.ctx, ast.Store)]  # not the owner of an attribute
            if isinstance(node, ast.Assign) and re.match("TypeVar|ParamSpec", ast.unparse(node.value)):
                continue
            for name in names:
                if not name.startswith("_") and name not in SHARED_NAMES:
                    modules[name].add(str(path.relative_to(PACKAGE)))
    twice = {name: sorted(paths) for name, paths in modules.items() if len(paths) > 1}
    assert not twice, twice


@pytest.mark.parametrize("path", sorted({*PACKAGE.rglob("*.py"), *DOCS}), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_of_a_file_are_plain(path: Path):
    if path.name in DATA_TABLES and path.parent.name == "emoji":
        return
    found = [f"line {i}: {word}" for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) for word in words_in(line)]
    assert not found, found


@pytest.mark.parametrize("line", ["", *COMMANDS, *(f"train {name}" for name in RECIPES)])
def test_the_words_of_the_help_are_plain(line: str, capsys: pytest.CaptureFixture[str]):
    assert main([*line.split(), "--help"]) == 0
    assert words_in(capsys.readouterr().out) == []


def test_folders_and_files_stay_small():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    crowded = {str(folder.relative_to(PACKAGE)): count for folder in folders if (count := len([*folder.glob("*.py")])) > MAX_FILES}
    crowded = {folder: count for folder, count in crowded.items() if folder not in ONE_FILE_EACH}
    lengths = {str(path.relative_to(PACKAGE)): path.read_text("utf-8").count("\n") for path in PACKAGE.rglob("*.py")}
    long = {path: count for path, count in lengths.items() if count > MAX_LINES}
    assert not crowded, crowded
    assert not long, long
