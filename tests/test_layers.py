"""A floor imports only from the floors below it; on the third floor, in one order."""

import ast
from pathlib import Path

import daguerre

HOUSE = Path(daguerre.__file__).parent
FLOORS = {
    "errors": 0,
    "files": 0,
    "memory": 0,
    "version": 0,
    "progress": 0,
    "diffusion": 1,
    "nn": 1,
    "models": 2,
    "data": 3,
    "metrics": 3.1,
    "text": 3.2,
    "weights": 3.4,
}
FLOORS |= {"pipelines": 4, "training": 5, "apps": 6}


def imported_rooms(path: Path) -> set[str]:
    """The rooms of the house that a file names in its imports, its own included."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name the room in full"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "daguerre" else [node.module or ""]
        rooms |= {name.split(".")[1] for name in names if name.startswith("daguerre.")}
    return rooms


def test_every_floor_imports_only_from_below():
    files = [path for path in HOUSE.rglob("*.py") if path.parent != HOUSE]
    assert len(files) > 20
    wrong = []
    for path in files:
        room = path.relative_to(HOUSE).parts[0]
        # nn and diffusion share a floor and must not know each other, hence >=.
        others = [other for other in imported_rooms(path) - {room} if FLOORS.get(other, 99) >= FLOORS[room]]
        wrong += [f"{path.relative_to(HOUSE)} imports {other}" for other in others]
    assert not wrong, wrong


def test_the_references_stay_in_the_tests():
    for path in HOUSE.rglob("*.py"):
        roots = {n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        roots |= {a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names}
        assert not {str(r).split(".")[0] for r in roots} & {"diffusers", "transformers", "peft", "torchvision", "pickle"}, path
