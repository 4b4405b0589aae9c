"""T1: pictures a second with 32 clients on one model through API and Serve, over a bare pipeline at its best batch.

Both draw with tinyworld, one thread each, pictures of a second or more. The bare arm is one process with nothing but
the pipeline, which first tries batches of 1 to 16 rows and then keeps the best; the arms take turns.
"""

import multiprocessing as mp
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from figure import at_least, line
from miniature import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from one_machine import OneMachine

import booth
from booth_service.diffusion.components import load_pipeline

BASE = ROOT / "examples" / "tinyworld" / "base_model"
CLIENTS, PICTURES, TURNS = 32, 64, 3
BATCHES = (1, 2, 4, 8, 16)
PROMPT, STEPS, GUIDANCE, SIDE_PX = "a photo of a teapot", 60, 3.0, 64
GOAL = at_least(0.95)


def report(name: str) -> bool:
    """Measure and print T1; True where it reaches its goal."""
    os.environ["BOOTH_SERVING_BATCH_SIZE"] = str(max(BATCHES))
    with tempfile.TemporaryDirectory(prefix="booth-rate-") as place, bare_pipeline() as bare:
        machine = OneMachine(Path(place) / "data")
        machine.start()
        try:
            with booth.Client(machine.base_url, machine.api_key) as client:
                served_s(client, CLIENTS)  # the pipeline is loaded, every connection open
                best, alone_s = bare_said(bare)
                ratios = [bare_s(bare, best) / served_s(client, PICTURES) for _ in range(TURNS)]
        finally:
            machine.stop()
    title = f"{CLIENTS} clients over the bare pipeline at batch {best}, {alone_s:.2f} s a picture alone"
    print(line(name, ratios, GOAL, title), flush=True)
    return GOAL.is_reached(statistics.median(ratios))


def served_s(client: booth.Client, pictures: int) -> float:
    """Seconds for so many pictures, each asked for by one of the clients."""
    asked = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as clients:
        drawn = list(clients.map(lambda seed: client.generate(PROMPT, seed=seed, **asked), range(pictures)))
    assert len({one.png for (one,) in drawn}) == pictures
    return time.perf_counter() - began


@contextmanager
def bare_pipeline() -> Iterator[Connection]:
    """A process that draws PICTURES pictures in batches of the size that it is sent, and answers the seconds."""
    here, there = mp.Pipe()
    process = mp.get_context("spawn").Process(target=draw_barely, args=(there,), daemon=True)
    process.start()
    try:
        yield here
    finally:
        process.kill()


def draw_barely(line_to_parent: Connection) -> None:
    torch.set_num_threads(1)
    pipeline = load_pipeline(BASE, torch.float32)
    while True:
        batch, pictures = line_to_parent.recv()
        began = time.perf_counter()
        for first in range(0, pictures, batch):
            draw(pipeline, range(first, min(first + batch, pictures)))
        line_to_parent.send(time.perf_counter() - began)


def draw(pipeline: Any, seeds: range) -> None:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    pipeline(
        [PROMPT] * len(seeds), generator=generators, guidance_scale=GUIDANCE, num_inference_steps=STEPS,
        width=SIDE_PX, height=SIDE_PX,
    )  # fmt: skip


def bare_said(bare: Connection) -> tuple[int, float]:
    """The batch size at which a picture takes least, and what one takes alone; each tried twice, the better counts."""
    took = {batch: min(asked_s(bare, batch, batch) / batch for _ in range(2)) for batch in BATCHES}
    return min(took, key=took.__getitem__), took[1]


def bare_s(bare: Connection, batch: int) -> float:
    return asked_s(bare, batch, PICTURES)


def asked_s(bare: Connection, batch: int, pictures: int) -> float:
    bare.send((batch, pictures))
    return float(bare.recv())
