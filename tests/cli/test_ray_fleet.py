"""`daguerre batch --executor ray`: the files are those of one process, whatever is killed; Ray never waits for what it cannot have."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import daguerre
from daguerre.cli import ray_fleet
from daguerre.cli.ray_fleet import ActorPlan, plan_actors
from daguerre.errors import DaguerreError

PROGRAM = "import sys; from daguerre.cli.main import main; sys.exit(main(sys.argv[1:]))"
SOURCES = Path(daguerre.__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray's processes see the package under test, and none is left."""
    if find_spec("ray") is None:  # an import would come before its settings
        pytest.skip("Ray is not installed")
    for name in ("RAY_ADDRESS", *ray_fleet.QUIET):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(SOURCES))
    yield
    deadline = time.monotonic() + 20
    while (left := ray_processes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def ray_processes(word: str = "") -> list[int]:
    """The running processes of Ray that have this session's PYTHONPATH, by the start of their title."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            title, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::" + word.encode()) and f"PYTHONPATH={SOURCES}".encode() in variables:
            found.append(int(entry.name))
    return found


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two actors need two cores")
@pytest.mark.long
def test_two_actors_write_what_one_process_writes(run, processes, folder):
    rows = [{"prompt": "a cat", "seed": seed, "steps": steps} for seed, steps in enumerate((1, 2, "many", 1))]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = ["batch", "a.jsonl", f"--model={folder}", "--size=32", "--threads=1", "--steps=1"]
    code, out, err = run(*line, "--out=spread", "--executor=ray", "--actors=2")
    assert (code, out) == (1, "spread/index.jsonl\n"), err
    assert [text.partition(";")[0] for text in err.splitlines()] == [
        "daguerre: actors: 2, each with --threads 1",
        "daguerre: 3 rows generated, 0 were there.",
        "daguerre: 1 of 4 rows failed",
    ]
    assert run(*line, "--out=alone")[0] == 1
    assert contents(Path("spread")) == contents(Path("alone"))


@pytest.mark.parametrize(
    ("nodes", "options", "plan"),
    [
        ([{"CPU": 8}], {}, ActorPlan(2, 4, "CPU", 4)),
        ([{"CPU": 8}], {"threads": 1}, ActorPlan(8, 1, "CPU", 1)),
        ([{"CPU": 8}], {"actors": 4}, ActorPlan(4, 2, "CPU", 2)),
        ([{"CPU": 8}], {"actors": 1}, ActorPlan(1, 4, "CPU", 4)),
        ([{"CPU": 3}, {"CPU": 3}], {"threads": 2}, ActorPlan(2, 2, "CPU", 2)),  # an actor has its threads on one machine
        ([{"CPU": 2}, {}], {}, ActorPlan(1, 2, "CPU", 2)),
        ([{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}], {}, ActorPlan(3, 1, "GPU", 1)),
        ([{"CPU": 8, "GPU": 2}], {"actors": 1, "threads": 3}, ActorPlan(1, 3, "GPU", 1)),
        ([{"CPU": 8, "GPU": 2}], {"device": "cpu"}, ActorPlan(2, 4, "CPU", 4)),
    ],
)
def test_actors_have_room(nodes, options, plan):
    assert plan_actors(nodes, 4, **{"actors": None, "threads": None, "device": None, **options}) == plan


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        ([{"CPU": 2}], {"actors": 3}, "--actors is 3, and Ray has room for 2 with 1 CPU each"),
        ([{"CPU": 3}, {"CPU": 3}], {"actors": 3, "threads": 2}, "Ray has room for 2 with 2 CPUs each"),
        ([{"CPU": 3}, {"CPU": 3}], {"actors": 2, "threads": 4}, "no machine for actors with 4 CPUs"),
        ([{"CPU": 8, "GPU": 1}], {"actors": 2}, "Ray has room for 1 with 1 GPU each"),
        ([{"CPU": 8}], {"device": "cuda"}, "no machine for actors with 1 GPU each"),
        ([], {}, "no machine for actors"),
    ],
)
def test_actors_without_room_are_an_error(nodes, options, message):
    with pytest.raises(DaguerreError, match=message):
        plan_actors(nodes, 4, **{"actors": None, "threads": None, "device": None, **options})


def test_a_model_of_another_machine_stops_the_fleet(tmp_path: Path):
    other = SimpleNamespace(identity={"dtype": "bfloat16"})
    actor = ray_fleet.RowGenerator(other, {"dtype": "float32"}, str(tmp_path))  # pyright: ignore[reportArgumentType]
    answer = actor({"row": ray_fleet.TableRow(7, "7", {"prompt": "a cat"})})
    assert (answer["number"], answer["stop"]) == (7, True)
    assert "another precision than the first one" in answer["error"]


def test_what_stops_ray_is_one_sentence(processes):
    ray = ray_fleet.import_ray()
    errors = {"memory may not suffice": ray.exceptions.RayActorError(), "KeyError: 3.": ray.exceptions.RaySystemError("at x\nKeyError: 3")}
    for message, error in errors.items():
        with pytest.raises(DaguerreError, match=rf"^Ray stopped: .*{message}.* The same command goes on"), ray_fleet.one_sentence(ray):
            raise error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--actors=2",), "--actors belongs to --executor ray"),
        (("--executor=ray", "--actors=0"), "--actors is 0"),
        (("--executor=ray",), "Ray is not installed; install it with `pip install 'daguerre[ray]'`"),
    ],
)
def test_wrong_options_stop_before_the_work(run, monkeypatch, options, message):
    monkeypatch.setitem(sys.modules, "ray", None)
    Path("a.csv").write_text("prompt\na cat\n")
    code, out, err = run("batch", "a.csv", "--out=results", *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not Path("results").exists()


def test_a_cluster_that_cannot_be_reached_is_an_error(run, processes, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free once this block ends
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    Path("a.csv").write_text("prompt\na cat\n")
    code, out, err = run("batch", "a.csv", "--out=results", "--executor=ray")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"Ray cannot connect to RAY_ADDRESS '127.0.0.1:{port}': [Errno" in err
    assert not Path("results").exists()


@pytest.mark.long
def test_killed_actors_and_drivers_end_with_one_file_a_row(run, processes, folder):
    Path("many.csv").write_text("prompt,seed\n" + "".join(f"a cat,{i}\n" for i in range(64)))
    arguments = ["batch", "many.csv", f"--model={folder}", "--steps=12", "--size=64", "--threads=1"]
    assert run(*arguments, "--out=whole")[0] == 0
    line = [sys.executable, "-c", PROGRAM, *arguments, "--out=killed", "--executor=ray", "--actors=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def wait_for(count: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while len(list(Path("killed").glob("*/*.png"))) < count:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

    driver = subprocess.Popen(line, env=environment)
    wait_for(4, driver)
    os.kill(ray_processes("MapWorker")[0], signal.SIGKILL)  # its rows are generated by another actor
    wait_for(24, driver)
    driver.kill()
    driver.wait()
    assert run(*line[3:], "--actors=5000")[0] == 2
    start = time.monotonic()
    assert subprocess.run(line, env=environment, timeout=300, check=False).returncode == 0
    assert time.monotonic() - start < 60
    assert contents(Path("killed")) == contents(Path("whole"))
    assert len(list(Path("killed").glob("*/*.png"))) == 64
