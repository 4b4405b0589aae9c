"""Arms of a duel take turns: each trains a few steps while all others wait, so that a busy machine is busy for all.

Arms are processes. Each rank of an arm holds a `Turn`, the duel holds the `Turns`; they talk in JSON lines on loopback.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

PORT_VARIABLE, ARM_VARIABLE, STEPS_VARIABLE = "BENCH_TURNS_PORT", "BENCH_ARM", "BENCH_STEPS_PER_TURN"


class TurnsBroken(RuntimeError):
    """An arm ended before its last turn."""


@dataclass(frozen=True)
class Spent:
    """What an arm's ranks spent in one turn: CPU seconds in all, wall seconds of the slowest."""

    cpu_s: float
    wall_s: float


class Turn:
    """One rank's side. Call `begin` before the first step, `step_done` after each step, `end` after the last."""

    def __init__(self, port: int, arm: str, rank: int, steps_per_turn: int) -> None:
        self._steps_per_turn, self._steps = steps_per_turn, 0
        self._line = socket.create_connection(("127.0.0.1", port)).makefile("rw")
        self._say({"arm": arm, "rank": rank})

    @classmethod
    def from_environment(cls) -> "Turn":
        """The turn that the duel gave to this process; inside a process group."""
        port, arm, steps = (os.environ[name] for name in (PORT_VARIABLE, ARM_VARIABLE, STEPS_VARIABLE))
        return cls(int(port), arm, dist.get_rank(), int(steps))

    def begin(self) -> None:
        self._wait()

    def step_done(self) -> None:
        """Waits for this arm's next turn where the present one is over."""
        self._steps += 1
        if self._steps % self._steps_per_turn == 0:
            self._say({"cpu_s": time.process_time() - self._cpu_s, "wall_s": time.perf_counter() - self._wall_s})
            self._wait()

    def end(self, losses: list[float]) -> None:
        self._say({"losses": losses})
        self._line.close()

    def _wait(self) -> None:
        if not self._line.readline():
            raise TurnsBroken("the duel is over")
        self._cpu_s, self._wall_s = time.process_time(), time.perf_counter()

    def _say(self, words: dict[str, Any]) -> None:
        self._line.write(json.dumps(words) + "\n")
        self._line.flush()


class Turns:
    """The duel's side: lets arms run one after the other, and hears what they spent."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self._lines: dict[str, dict[int, Any]] = {}

    def meet(self, ranks: dict[str, int], are_alive: Callable[[], bool]) -> None:
        """All ranks of all arms are ready for their first step. Raises TurnsBroken where one ends instead."""
        self._server.settimeout(0.5)
        while any(len(self._lines.get(arm, {})) < count for arm, count in ranks.items()):
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                if not are_alive():
                    raise TurnsBroken("an arm ended before its first step") from None
                continue
            line = connection.makefile("rw")
            hello = json.loads(line.readline())
            self._lines.setdefault(hello["arm"], {})[hello["rank"]] = line

    def run(self, turns: int) -> tuple[dict[str, list[Spent]], dict[str, list[float]]]:
        """Let every arm have so many turns; returns what each spent in each, and rank 0's losses."""
        spent: dict[str, list[Spent]] = {arm: [] for arm in self._lines}
        for turn in range(turns):
            for arm in sorted(self._lines, reverse=turn % 2 == 1):
                self._release(arm)
                told = [self._hear(arm, rank) for rank in self._lines[arm]]
                spent[arm].append(Spent(sum(t["cpu_s"] for t in told), max(t["wall_s"] for t in told)))
        losses = {}
        for arm in self._lines:
            self._release(arm)
            losses[arm] = {rank: self._hear(arm, rank)["losses"] for rank in self._lines[arm]}[0]
        return spent, losses

    def close(self) -> None:
        for lines in self._lines.values():
            for line in lines.values():
                line.close()
        self._server.close()

    def _release(self, arm: str) -> None:
        for line in self._lines[arm].values():
            line.write("go\n")
            line.flush()

    def _hear(self, arm: str, rank: int) -> dict[str, Any]:
        words = self._lines[arm][rank].readline()
        if not words:
            raise TurnsBroken(f"rank {rank} of {arm} ended before its last turn")
        told: dict[str, Any] = json.loads(words)
        return told
