"""`python -m booth_service.local up|admin|register|register_encoders`: what boothctl's operator commands run."""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from booth_service.local import environment, leftovers
from booth_service.local.data_dir import DataDir, default_path
from booth_service.local.errors import Interrupted, StackError
from booth_service.local.part import Signals
from booth_service.local.stack import Stack, say


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0 stopped as asked, 1 could not run."""
    parser = _parser()
    asked, rest = parser.parse_known_args(arguments)
    if rest and asked.command == "up":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    os.umask(0o077)  # what this process and its children write is for their owner alone
    directory = DataDir(asked.data_dir or default_path())
    try:
        if asked.command == "up":
            return up(directory, asked.port, asked.json)
        become(f"booth_service.control.{asked.command}", directory, rest)
    except StackError as error:
        say(str(error))
        return 1


def up(directory: DataDir, port: int | None, as_json: bool = False) -> int:
    """The stack has run in the foreground until it was asked to stop, and nothing of it is left.

    In JSON, one document on stdout says where it answers as soon as it does.
    """
    signals = Signals()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: _on_signal(signals, number, frame))
    with directory.locked():
        stack = Stack(directory, signals, port)
        try:
            stack.start()
            if as_json:
                print(json.dumps(_whereabouts(stack)), flush=True)
            stack.supervise()
        except Interrupted:
            pass
        finally:
            say("Stopping.")
            stack.stop()
    say("Stopped.")
    return 0


def become(module: str, directory: DataDir, rest: list[str]) -> NoReturn:
    """This process becomes an operator's program with the settings of the stack on this data directory."""
    state = directory.load_state()
    if not state.s3_ports:
        raise StackError(f"No stack was ever started on {directory.path}. Run `boothctl up` first, or name --data-dir.")
    settings = environment.control(directory, state)
    del settings[leftovers.MARK]
    os.execve(sys.executable, [sys.executable, "-m", module, *rest], settings)


def _whereabouts(stack: Stack) -> dict[str, str | int]:
    """What another program needs to find the stack; the API key stays in the data directory."""
    return {"base_url": stack.control_plane.address, "data_dir": str(stack.directory.path), "pid": os.getpid()}


def _on_signal(signals: Signals, number: int, frame: FrameType | None) -> None:
    if signals.stop.is_set():
        signals.hurry.set()
    signals.stop.set()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m booth_service.local", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    shared.add_argument("--data-dir", type=Path, help="where the stack keeps everything (BOOTH_DATA_DIR)")
    command = commands.add_parser("up", parents=[shared], help="run the one-machine stack in the foreground")
    command.add_argument("--port", type=int, help="port of the control plane (7878, or a free one)")
    command.add_argument("--json", action="store_true", help="write where it answers to stdout, as one JSON document")
    operators = {
        "admin": "tenants and API keys",
        "register": "add a base model",
        "register_encoders": "add a suite of encoders",
    }
    for name, text in operators.items():
        commands.add_parser(name, parents=[shared], add_help=False, allow_abbrev=False, help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
