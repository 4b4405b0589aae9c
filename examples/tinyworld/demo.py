"""The whole way once, on this machine: stack up, personalise a tinyworld subject, draw it in new places, stack down.

python examples/tinyworld/demo.py --subject teapot --out contact_sheet.png
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contact_sheet import Row, contact_sheet
from PIL import Image

import booth
from booth.cli_output import duration, follower, say, show_json

SUBJECTS = Path(__file__).parent / "subjects"
PICTURES_PER_ROW = 5
SEED = 1
START_LIMIT_S = 300
STOP_LIMIT_S = 90


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped on the way out
    folder = SUBJECTS / arguments.subject
    subject = json.loads(folder.with_suffix(".json").read_text())
    with tempfile.TemporaryDirectory(prefix="booth-") as scratch:
        data_dir = arguments.data_dir or Path(scratch)
        with stack(data_dir) as client:
            job, model = personalised(client, folder, subject["class_noun"], arguments.steps)
            with timed("Pictures"):
                rows = rows_of(client, job, model, folder, subject["held_out_contexts"])
            contact_sheet(rows).save(arguments.out)
    path = str(arguments.out.resolve())
    if arguments.json:
        show_json({"contact_sheet": path})
    else:
        print(f"\nContact sheet: {path}")


def personalised(
    client: booth.Client, folder: Path, class_noun: str, steps: int | None
) -> tuple[booth.Job, booth.Model]:
    """The subject's job, done, and its model."""
    with timed("Personalisation"), follower() as on_event:
        job = client.personalize(sorted(folder.glob("*.png")), "sks", class_noun, seed=SEED, steps=steps)
        return job, job.wait(on_event=on_event)


def rows_of(client: booth.Client, job: booth.Job, model: booth.Model, folder: Path, contexts: list[str]) -> list[Row]:
    """What the sheet shows: photos, the class before and after, and the subject where no photo shows it."""
    class_prompt, subject_prompt = job.params.class_prompt, job.params.instance_prompt
    photos = [Image.open(path) for path in sorted(folder.glob("*.png"))]
    before = client.generate(class_prompt, job.params.base_model, PICTURES_PER_ROW, SEED)
    after = model.generate(class_prompt, PICTURES_PER_ROW, SEED)
    rows = [
        Row("The photos", photos),
        Row(f'Base model: "{class_prompt}"', [picture.image for picture in before]),
        Row(f'Personalised model: "{class_prompt}", same seeds', [picture.image for picture in after]),
    ]
    for context in contexts:
        prompt = f"{subject_prompt} {context}"
        drawn = model.generate(prompt, PICTURES_PER_ROW, SEED)
        rows.append(Row(f'"{prompt}"', [picture.image for picture in drawn]))
    return rows


@contextmanager
def stack(data_dir: Path) -> Iterator[booth.Client]:
    """A running one-machine stack and its client; stopped at the end, whatever happens."""
    command = [sys.executable, "-m", "booth.cli", "up", "--data-dir", str(data_dir)]
    process = subprocess.Popen(command, start_new_session=True)  # Ctrl-C reaches this script alone, which stops it
    try:
        with timed("Stack up"):
            written = _wait_until_up(process, data_dir / "client.json")
        with booth.Client(written["base_url"], written["api_key"]) as client:
            yield client
    finally:
        with timed("Stack down"):
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def _wait_until_up(process: subprocess.Popen[bytes], client_file: Path) -> Any:
    """What `boothctl up` wrote for its clients, once it answers."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"The stack did not start: it ended with status {process.returncode}. It said why above.")
        time.sleep(0.5)
        if not client_file.exists():
            continue
        written = json.loads(client_file.read_text())
        if written["pid"] == process.pid:  # not one left over from an earlier stack in this folder
            with booth.Client(written["base_url"], written["api_key"]) as client:
                client.server_version()
            return written
    sys.exit(f"The stack was not up after {START_LIMIT_S} s. It said above which part is missing.")


@contextmanager
def timed(what: str) -> Iterator[None]:
    """How long the block took is told on stderr."""
    start = time.monotonic()
    try:
        yield
    finally:
        say(f"{what}: {duration(time.monotonic() - start)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="teapot", help="a folder of examples/tinyworld/subjects")
    parser.add_argument("--steps", type=int, help="optimizer steps; the base model's recipe without it")
    parser.add_argument("--data-dir", type=Path, help="where the stack keeps its state; a temporary folder without it")
    parser.add_argument("--out", type=Path, default=Path("contact_sheet.png"), help="where the contact sheet goes")
    parser.add_argument("--json", action="store_true", help="print the contact sheet's path as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
