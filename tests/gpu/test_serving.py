"""The GPU's script for serving at a tiny size on the CPU: every figure is measured and nothing of it fails."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ranks

SERVING = Path(__file__).with_name("serving.py")


def test_every_figure_is_measured_on_a_cpu() -> None:
    done = subprocess.run([sys.executable, SERVING, "--cpu-miniature"], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout, done.stdout
    for figure in ("H6", "H7", "H8", "H9", "H10", "H11", "H12", "T"):
        assert f"\n{figure} " in done.stdout, done.stdout
