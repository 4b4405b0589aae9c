"""The pool of actors on a real Ray: equal bits whoever makes a block and whoever dies."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "chaos" / "class_actors.py"


@pytest.mark.ray
def test_one_actor_two_actors_and_killed_ones_make_equal_bits(tmp_path: Path) -> None:
    """In a process of its own: a Ray beside the suite's."""
    command = [sys.executable, str(PROGRAM), str(tmp_path), "--kills", "1", "--pictures", "24"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 pictures, 1 actors killed, 2 at work at once, bit-equal to one undisturbed" in done.stdout
