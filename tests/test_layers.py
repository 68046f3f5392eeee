"""A layer imports only from the layers below it, and no module imports itself through others."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import daguerre

PACKAGE = Path(daguerre.__file__).parent
LAYERS = {
    "errors": 0,
    "limits": 0,
    "share": 0,
    "atomic_io": 0,
    "cpu_threads": 0,
    "version": 0,
    "progress": 0,
    "diffusion": 1,
    "nn": 1,
    "models": 2,
    "data": 3,
    "metrics": 3.1,
    "conditioning": 3.2,
    "runtime": 4,
    "weights": 5,
    "adapters": 6,
    "pipelines": 7,
    "training": 8,
    "evaluation": 9,
    "cli": 11,
    "server": 10,
}


def imported_packages(path: Path) -> set[str]:
    """The packages of daguerre that a file names in its imports, its own included."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; use the absolute name"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "daguerre" else [node.module or ""]
        packages |= {name.split(".")[1] for name in names if name.startswith("daguerre.")}
    return packages


def test_every_layer_imports_only_from_layers_below():
    files = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE]
    assert len(files) > 20
    wrong = []
    for path in files:
        package = path.relative_to(PACKAGE).parts[0]
        # nn and diffusion share a layer and must not import each other, hence >=.
        others = [other for other in imported_packages(path) - {package} if LAYERS.get(other, 99) >= LAYERS[package]]
        wrong += [f"{path.relative_to(PACKAGE)} imports {other}" for other in others]
    assert not wrong, wrong


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes, including those inside functions, except under `if TYPE_CHECKING`."""
    if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from run_time_nodes(child)


def import_graph() -> dict[str, set[str]]:
    """Each module of daguerre and those that it imports, at its top or inside its functions."""
    sources = {module_name(path): path.read_text() for path in PACKAGE.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        imported: set[str] = set()
        for node in run_time_nodes(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                imported |= {name if name in sources else str(node.module) for name in names}
        graph[module] = imported & sources.keys()
    return graph


def test_no_module_imports_itself_through_others():
    graph = import_graph()
    assert any(graph.values())
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_only_the_tests_import_reference_libraries():
    for path in PACKAGE.rglob("*.py"):
        roots = {n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)}
        roots |= {a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names}
        assert not {str(r).split(".")[0] for r in roots} & {"diffusers", "transformers", "peft", "torchvision", "pickle"}, path
