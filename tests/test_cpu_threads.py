"""The number of CPU threads and how they wait: from the environment, the load of the machine, a flag, or the record of an earlier run."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from daguerre import cpu_threads
from daguerre.cpu_threads import SPIN_COUNT, check_threads, free_cores, set_threads, use_free_cores, wait_passively
from daguerre.errors import DaguerreError
from daguerre.pipelines.metadata.write import Provenance, read_provenance, write_image_with_metadata
from daguerre.training.run_identity import record_run


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """A number of threads that is not torch's own, because two threads on a busy core take long."""
    count = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: count[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: count.__setitem__(0, threads))


@pytest.fixture
def two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.mark.parametrize(
    ("variables", "imported", "then"),
    [
        ({}, False, SPIN_COUNT),
        ({"GOMP_SPINCOUNT": "7"}, False, "7"),
        ({"OMP_WAIT_POLICY": "active"}, False, None),
        ({}, True, None),  # it is too late
    ],
)
def test_idle_threads_sleep_soon_unless_configured_otherwise(monkeypatch, variables, imported, then):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # restored after the test
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if not imported:
        monkeypatch.delitem(sys.modules, "torch")
    wait_passively()
    assert os.environ.get("GOMP_SPINCOUNT") == then


def load(monkeypatch, tmp_path: Path, busy: list[float]) -> None:
    """A machine whose cores are busy for these shares of the time that is measured."""
    ticks, seconds = os.sysconf("SC_CLK_TCK"), [0.0]
    monkeypatch.setattr(cpu_threads.time, "monotonic", lambda: seconds[0])
    stat = tmp_path / "stat"

    def wait(duration: float) -> None:
        seconds[0] += duration
        rows = [f"cpu{core} 0 0 0 {1000 + round(seconds[0] * (1 - share) * ticks)} 0 0" for core, share in enumerate(busy)]
        stat.write_text("\n".join(["cpu 1 2 3 4 5", *rows, "intr 1"]))

    wait(0)
    monkeypatch.setattr(cpu_threads.time, "sleep", lambda duration: wait(100 * duration))
    monkeypatch.setattr(cpu_threads, "CORE_TIMES", stat)


@pytest.mark.parametrize(("busy", "free"), [([0, 0], 2), ([1, 0], 1), ([1, 1], 1), ([0.2, 0.2], 2), ([0.5, 0.4], 1)])
def test_cores_that_others_keep_busy_are_not_free(monkeypatch, tmp_path, two_cores, busy, free):
    load(monkeypatch, tmp_path, busy)
    assert free_cores() == free
    torch.set_num_threads(2)
    assert use_free_cores() == torch.get_num_threads() == free


def test_cores_of_other_processes_do_not_count(monkeypatch, tmp_path, two_cores):
    load(monkeypatch, tmp_path, [0, 1, 1, 1])  # this process may use the first two
    assert free_cores() == 1


@pytest.mark.parametrize("content", [None, "", "cpu0 1 2", "cpu0 a b c d e\ncpu1 a b c d e"])
def test_all_cores_are_free_where_the_system_does_not_report(monkeypatch, tmp_path, two_cores, content):
    monkeypatch.setattr(cpu_threads, "CORE_TIMES", tmp_path / "stat")
    monkeypatch.setattr(cpu_threads.time, "sleep", lambda duration: None)
    if content is not None:
        (tmp_path / "stat").write_text(content)
    assert free_cores() == 2


def test_an_environment_variable_or_one_thread_is_kept(monkeypatch, two_cores):
    monkeypatch.setattr(cpu_threads, "free_cores", lambda: pytest.fail("measured"))
    torch.set_num_threads(1)
    assert use_free_cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    torch.set_num_threads(2)
    assert use_free_cores() == 2


@pytest.mark.parametrize(
    ("requested", "recorded", "used"), [(None, None, 1), (2, None, 2), (2, 1, 2), (None, 2, 2), (None, 3, 1), (None, 0, 1)]
)
def test_a_request_goes_before_a_record(two_cores, requested, recorded, used):
    torch.set_num_threads(1)
    assert set_threads(requested, recorded) == torch.get_num_threads() == used


@pytest.mark.parametrize("count", [0, -2, 1025])
def test_impossible_numbers_are_refused(count):
    with pytest.raises(DaguerreError, match=f"threads is {count}; it must be 1 to 1024"):
        check_threads(count)
    with pytest.raises(DaguerreError, match="threads is"):
        set_threads(count)


def test_a_resumed_run_keeps_its_number_of_threads(tmp_path, two_cores, capsys):
    def run(threads: int | None = None) -> int:
        torch.set_num_threads(1)
        record_run(tmp_path, "R", "data", size=32, seed=0, threads=threads)
        assert json.loads((tmp_path / "recipe.json").read_text())["threads"] == torch.get_num_threads()
        return torch.get_num_threads()

    assert run(2) == 2
    assert run() == 2
    assert capsys.readouterr().err == ""
    assert run(1) == 1
    assert capsys.readouterr().err == f"daguerre: 1 threads; the run in {tmp_path} had 2 so far, so its results differ by rounding\n"
    assert run() == 1


def test_an_image_records_the_number_of_threads(make_tiny_model, tmp_path):
    import daguerre

    model, path = make_tiny_model(), tmp_path / "a.png"
    torch.set_num_threads(2)
    daguerre.generate(model, "a cat", steps=1)[0].save(path)
    image, provenance = read_provenance(path)
    assert provenance.threads == 2
    values = provenance.to_json()
    assert Provenance.from_json(values) == provenance
    del values["threads"]  # as earlier versions wrote it
    assert Provenance.from_json(values) == replace(provenance, threads=None)
    for wrong in (0, True, "2", 1.5):
        with pytest.raises(DaguerreError, match="cannot be read"):
            Provenance.from_json({**values, "threads": wrong})
    with path.open("wb") as file:
        write_image_with_metadata(file, image, ".png", replace(provenance, threads=None))
    assert read_provenance(path)[1].threads is None
