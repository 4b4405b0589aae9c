"""Figures said one by one: an error of one is a line of its own, and no reason to leave out the others."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from figure import Goal, line


def attempt(name: str, work: Callable[[], Any]) -> Iterator[bool]:
    """What `work` yields; an error is said, and counts as short."""
    try:
        yield from work()
    except Exception as error:
        print(f"{name} failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
        yield False


def say(device: torch.device, name: str, values: Sequence[float], goal: Goal | None, title: str) -> bool:
    """One line. The goals are a GPU's."""
    goal = goal if device.type == "cuda" else None
    print(line(name, values, goal, title), flush=True)
    return goal is None or goal.is_reached(sorted(values)[len(values) // 2])


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(first, second, strict=True)]
