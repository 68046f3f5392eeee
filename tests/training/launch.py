"""What the tests that start several processes share. It imports little, because each process imports it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
needs_two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")


def run_program(folder: Path, program: str, launcher: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run lines of Python in a folder; `Path` is imported."""
    (folder / "program.py").write_text(f"from pathlib import Path\n{program}\n")
    variables = ENVIRONMENT | environment
    return subprocess.run([*launcher, "program.py"], cwd=folder, env=variables, capture_output=True, text=True, timeout=300)
