"""Slow checks in rows: python tests/rows.py chaos (what must cost nothing), or scale (real sizes); ONLY=a,b for some.

A row is a file in the suite's folder beside this one with a function `row(folder: Path) -> str`: it works in an empty
folder of its own, returns in a few words what it saw, and raises where a promise was broken. Each runs in a process of
its own. One line for each: its name, ok or FAILED, what was seen, seconds. Exit status 1 where one failed, 2 where
ONLY names one that is not there. Rows that went well on these sources are not run again until all have: a run that was
cut short goes on where it was; rows that ONLY names always run. A run takes at most LIMIT_S; what has no time left
then has failed.
"""

import contextlib
import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LIMIT_S = 58 * 60.0


def main(suite: str) -> int:
    """Run the rows of a suite that were asked for, or all that have not gone well on this commit."""
    there = sorted(path.stem for path in (HERE / suite).glob("*.py") if not path.stem.startswith("test_"))
    asked = os.environ.get("ONLY", "").replace(",", " ").split()
    if unknown := sorted(set(asked) - set(there)):
        print(f"There is no row {', '.join(unknown)}; there are {', '.join(there)}.", file=sys.stderr)
        return 2
    deadline = time.monotonic() + LIMIT_S
    state = ROOT / f".{suite}-state.json"
    done = set(finished_rows(state))
    failed = []
    for name in asked or [name for name in there if name not in done]:
        if run_row(suite, name, deadline):
            done.add(name)
            state.write_text(json.dumps({"commit": commit(), "rows": sorted(done)}))
        else:
            failed.append(name)
    if not failed and set(there) <= done:
        state.unlink(missing_ok=True)
    return 1 if failed else 0


def run_row(suite: str, name: str, deadline: float) -> bool:
    """One row in a process of its own, nothing of which is left; True where it went well."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"booth-{suite}-{name}-") as folder:
        command = [sys.executable, __file__, suite, name, folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            said, _ = process.communicate(timeout=max(0.0, deadline - began))
        except subprocess.TimeoutExpired:
            said = f"FAILED not done within the run's {LIMIT_S / 60:.0f} minutes"
        finally:
            _end(process)
        verdict = said.strip().splitlines()[-1] if said.strip() else "FAILED its process died without a word"
    print(f"{name} {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
    return verdict.startswith("ok ")


def one(suite: str, name: str, folder: Path) -> int:
    """The row's own process: the last line that it prints is its verdict."""
    sys.path[:0] = [str(ROOT / part) for part in ("tests", f"tests/{suite}", "tests/benchmarks", "examples/tinyworld")]
    try:
        print(f"ok {importlib.import_module(name).row(folder)}")
    except Exception as error:
        traceback.print_exc()
        print(f"FAILED {type(error).__name__}: {' '.join(str(error).split())}")
        return 1
    return 0


def finished_rows(state: Path) -> list[str]:
    """Rows that went well on this commit in a run that was not completed."""
    try:
        kept = json.loads(state.read_text())
    except (FileNotFoundError, ValueError):
        return []
    return list(kept["rows"]) if kept["commit"] == commit() else []


def commit() -> str:
    """What the sources are: their commit, and what has changed since."""
    head = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    changes = ["git", "-C", str(ROOT), "diff", "HEAD"]
    said = [subprocess.run(command, capture_output=True, text=True, check=False).stdout for command in (head, changes)]
    return f"{said[0].strip()}+{hashlib.sha256(said[1].encode()).hexdigest()[:12]}"


def _end(process: "subprocess.Popen[str]") -> None:
    """Neither the row's process nor what it started in its session lives."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(one(sys.argv[1], sys.argv[2], Path(sys.argv[3])) if len(sys.argv) == 4 else main(sys.argv[1]))
