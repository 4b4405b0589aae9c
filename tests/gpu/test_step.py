"""The GPU's script at a tiny size on the CPU: every figure is measured and nothing of it fails."""

import subprocess
import sys
from pathlib import Path

import pytest
from ceilings import Ceilings
from step import floor_s

pytestmark = pytest.mark.ranks

STEP = Path(__file__).with_name("step.py")


def test_every_figure_is_measured_on_a_cpu() -> None:
    done = subprocess.run([sys.executable, STEP, "--cpu-miniature"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stdout
    for figure in ("H1", "H2", "H3", "H4-1-1", "H4-1-2", "H5", "T"):
        assert f"\n{figure} " in done.stdout, done.stdout


def test_the_floors_of_a_step_on_an_h100() -> None:
    """By hand: 4.89 TFLOP at 798 TFLOP/s, 6.1 ms; 982.6 M parameters of 28 + 4 + 6 bytes at 3 TB/s, 12.4 ms."""
    assert floor_s(4_890 * 10**9, 982_600_000, Ceilings(798e12, 3e12, 50e9)) == pytest.approx(18.6e-3, abs=1e-4)
