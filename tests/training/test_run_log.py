"""The log of a run: how long the model waits for data."""

import json
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace

import pytest

from daguerre.training import run_log


@pytest.mark.parametrize(("loading", "step", "share"), [(3.0, 1.0, 0.75), (1.0, 39.0, 0.025)])
def test_waiting_for_data_is_measured_and_said_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    loading: float,
    step: float,
    share: float,
):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, strftime=time.strftime, gmtime=time.gmtime)
    monkeypatch.setattr(run_log, "time", clock)

    def batches() -> Iterator[int]:
        for number in count():
            clock.now += loading
            yield number

    with run_log.RunLog(tmp_path, "ddpm", 0, 12) as log:
        for number in islice(log.watch(batches()), 12):
            clock.now += step
            if number % 4 == 3:
                log.losses(number + 1, 5, {"loss": 1.0})
    first, *others = [json.loads(line)["waiting_for_data"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert others == pytest.approx([share, share])
    assert first == pytest.approx(share * 3 / 4, abs=1e-3)  # the first batch does not count
    printed, waits = capsys.readouterr().err, share > run_log.MAX_WAITING
    assert printed.count("Loading gives") == waits
    assert ("Loading gives 1.25 images per second; the steps alone take 2.86" in printed) == waits
    assert printed.count("waiting for data") == 3 * waits
