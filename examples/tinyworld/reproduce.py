"""The paper's claims on tinyworld, from nothing to RESULTS.md, by Booth's own jobs on a one-machine stack.

    python examples/tinyworld/reproduce.py                    # about 50 minutes of two quiet cores
    python examples/tinyworld/reproduce.py --subjects 2 --only prior,noun

One sweep for each arm and seed (claim_arms.py), two cells at a time. What is done stays in --folder: after Ctrl-C or a
kill the same command goes on where it was, and with more --seeds it runs only those that are new.
"""

import argparse
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from charts import curves
from claim_arms import ARMS, ARMS_OF_CLAIMS, SAMPLER_STEPS, TOKEN, Arm, is_first_with_its_arms
from claims import CLAIMS
from contact_sheet import contact_sheet
from demo import STOP_LIMIT_S, stack, timed
from picture_rows import PHOTOS, rows_for
from results import in_words, results_page
from world import SUBJECTS, Subject

import booth
from booth.cli_output import say
from booth.cli_runs import follower
from booth.contract.evaluation import ReportRow

HERE = Path(__file__).parent
CELLS_AT_ONCE = 2
CELL_PX = 96


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stack is stopped on the way out
    subjects, claims = SUBJECTS[: arguments.subjects], arguments.only or list(CLAIMS)
    arms = [arm for name, arm in ARMS.items() if any(name in ARMS_OF_CLAIMS[claim] for claim in claims)]
    arguments.folder.mkdir(parents=True, exist_ok=True)
    stop_leftover(arguments.folder)
    with stack(arguments.folder) as client:
        with timed("All cells"):
            cells = finished_cells(client, arms, subjects, range(arguments.seeds))
        rows = [row for cell in cells for row in rows_of(cell)]
        with timed("Pictures"):
            sheets = written_pictures(client, cells, rows, subjects[0], claims, arguments.out)
    verdicts = {claim: CLAIMS[claim](rows) for claim in claims}
    validity = json.loads((HERE / "encoders" / "validity.json").read_text())
    (arguments.out / "RESULTS.md").write_text(results_page(rows, verdicts, sheets, validity, settings_of(arms)))
    for verdict in verdicts.values():
        print(f"{verdict.claim}: {in_words(verdict)}")
    print(f"\nTables and pictures: {(arguments.out / 'RESULTS.md').resolve()}")


def finished_cells(
    client: booth.Client, arms: Sequence[Arm], subjects: Sequence[Subject], seeds: Sequence[int]
) -> list[booth.Cell]:
    """Every cell of every arm, all over. All sweeps are asked for at once, so that one follows the other."""
    sweeps = [submitted(client, arm, subjects, seed) for seed in seeds for arm in arms]
    cells = []
    for sweep in sweeps:
        say(f"{sweep.name}: {sweep.id}")
        with timed(sweep.name), follower() as on_progress:
            sweep.wait(on_progress=on_progress)
        cells += sweep.cells()
    for cell in cells:
        if cell.error is not None:
            say(f"{cell.labels.arm}, {cell.labels.subject}: {cell.error.message} {cell.error.remedy}")
    return cells


def submitted(client: booth.Client, arm: Arm, subjects: Sequence[Subject], seed: int) -> booth.Group:
    """The arm's sweep: a new one, or the one that this very request has made before."""
    by_name = {subject.name: subject for subject in subjects}
    photos = {name: booth.Subject(PHOTOS / name, TOKEN, subject.noun) for name, subject in by_name.items()}
    return client.sweep(
        photos,
        {arm.name: lambda name: arm.changes(by_name[name])},
        seeds=[seed],
        name=f"{arm.name}, seed {seed}",
        cells_at_once=CELLS_AT_ONCE,
    )


def rows_of(cell: booth.Cell) -> Iterator[ReportRow]:
    """The cell's scores by step, as rows of a report."""
    for score in cell.scores():
        yield ReportRow(subject=cell.labels.subject, arm=cell.labels.arm, seed=cell.labels.seed, score=score)


def written_pictures(
    client: booth.Client,
    cells: Sequence[booth.Cell],
    rows: Sequence[ReportRow],
    subject: Subject,
    claims: Sequence[str],
    out: Path,
) -> dict[str, list[str]]:
    """Curves and picture rows by claim, as links from RESULTS.md; the rows are of the first subject and seed."""
    folder = out / "reproduced"
    folder.mkdir(parents=True, exist_ok=True)
    models = {
        cell.labels.arm: client.models.get(cell.model_id)
        for cell in cells
        if cell.model_id is not None and (cell.labels.subject, cell.labels.seed) == (subject.name, 0)
    }
    links: dict[str, list[str]] = {}
    for claim in claims:
        links[claim] = []
        if is_first_with_its_arms(claim, claims) and (chart := curves(rows, claim)):
            (folder / f"{claim}-curves.png").write_bytes(chart)
            links[claim].append(f"reproduced/{claim}-curves.png")
        if sheet := rows_for(claim, client, subject, models):
            contact_sheet(sheet, CELL_PX).save(folder / f"{claim}.png")
            links[claim].append(f"reproduced/{claim}.png")
    return links


def settings_of(arms: Sequence[Arm]) -> dict[str, str]:
    """What differs between the arms, for the end of RESULTS.md."""
    told = {arm.name: ", ".join(f"{dial} {value}" for dial, value in arm.dials.items()) for arm in arms}
    return told | {
        "all others": "tinyworld's recipe",
        "scored pictures": f"{SAMPLER_STEPS} steps, seeds shared by all arms",
    }


def stop_leftover(folder: Path) -> None:
    """A stack that a killed run has left on this folder is stopped, since only one can use it."""
    with contextlib.suppress(FileNotFoundError, booth.BoothError, ProcessLookupError):
        written = json.loads((folder / "client.json").read_text())
        with booth.Client(written["base_url"], written["api_key"]) as client:
            client.server_version()  # it is that stack, and no other process with its number
        say("Stopping the stack that an earlier run has left.")
        os.kill(written["pid"], signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT_S
        while not is_free(folder / "lock") and time.monotonic() < deadline:
            time.sleep(0.5)


def is_free(lock: Path) -> bool:
    """Whether no stack holds its folder's lock; it lets go of it last of all."""
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=HERE.parents[1] / ".reproduce", help="where the stack keeps its state"
    )
    parser.add_argument(
        "--out", type=Path, default=HERE, help="where RESULTS.md goes, with its pictures in reproduced/"
    )
    parser.add_argument("--seeds", type=int, default=1, help="training seeds of each cell")
    parser.add_argument("--subjects", type=int, default=len(SUBJECTS), help="only the first so many")
    parser.add_argument("--only", type=_claims, default=[], help=f"some claims: {','.join(CLAIMS)}")
    return parser.parse_args()


def _claims(text: str) -> list[str]:
    names = text.replace(",", " ").split()
    if unknown := [name for name in names if name not in CLAIMS]:
        raise argparse.ArgumentTypeError(f"there is no claim {', '.join(unknown)}; there are {', '.join(CLAIMS)}")
    return names


if __name__ == "__main__":
    main()
