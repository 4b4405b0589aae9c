"""The driver of a generation killed -9, again and again: no finished block is drawn twice, and all have the endpoint's
bits."""

import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import psutil
from one_machine import OneMachine

import booth
from booth.contract.bulk import DrawnBlock
from booth_service.local import environment
from booth_service.local.data_dir import DataDir
from booth_service.storage.s3 import ObjectStore

KILLS, PROMPTS, EACH, STEPS = 4, 10, 8, 25  # one more kill than a job without progress survives
WITHIN_S = 900


def row(folder: Path) -> str:
    """Kill it after a fifth, two fifths, ... of the pictures; compare what stood then with what stands at the end."""
    machine = OneMachine(folder / "data")
    machine.start()
    try:
        client = booth.Client(machine.base_url, machine.api_key)
        prompts = [f"a photo of a {noun}" for noun in ("teapot", "cat", "dog", "clock", "mug") * (PROMPTS // 5)]
        settings = {"seed": 3, "num_inference_steps": STEPS}
        generation = client.generate_many(prompts, num_images=EACH, **settings)
        store = store_of(machine)
        shares = [share * generation.total // (KILLS + 1) for share in range(1, KILLS + 1)]
        stood = [killed_after(generation, store, share) for share in shares]
        generation.wait(timeout_s=WITHIN_S)
        at_the_end = finished(store, generation)
        again = {key for before in stood for key, moment in before.items() if at_the_end[key] != moment}
        assert not again, f"drawn twice: {sorted(again)}"
        assert generation.record.attempt == KILLS + 1, f"{generation.record.attempt} attempts"
        pictures = list(generation.pictures())
        assert [picture.index for picture in pictures] == list(range(generation.total))
        for number, prompt in enumerate(prompts[:5]):  # a block takes four, and so does the endpoint's largest batch
            drawn = client.generate(prompt, num_images=EACH, **settings)
            ours = pictures[number * EACH : (number + 1) * EACH]
            assert [each.png for each in ours] == [each.png for each in drawn], f"other bits for {prompt!r}"
        counts = ", ".join(str(len(each)) for each in stood)
        return (
            f"{generation.total} pictures, the driver killed {KILLS} times when {counts} were finished, "
            f"0 of these drawn twice, {5 * EACH} compared with the endpoint's: equal bits"
        )
    finally:
        machine.stop()


def killed_after(generation: booth.Generation, store: ObjectStore, pictures: int) -> Mapping[str, datetime]:
    """The driver is killed once so many pictures are there. Returns what is finished when it is gone."""
    deadline = time.monotonic() + WITHIN_S
    while generation.refresh().done < pictures or not drivers(generation):
        assert not generation.status.is_final, f"over too early: {generation}"
        assert time.monotonic() < deadline, f"no {pictures} pictures within {WITHIN_S} s: {generation}"
        time.sleep(0.1)
    attempt = generation.record.attempt
    for process in drivers(generation):
        process.kill()
    while generation.refresh().record.attempt == attempt and generation.status is not booth.RunState.QUEUED:
        assert time.monotonic() < deadline, f"nobody noticed: {generation}"
        time.sleep(0.1)
    return finished(store, generation)


def drivers(generation: booth.Generation) -> list[psutil.Process]:
    """Processes of `python -m booth_service.bulk` for it."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if "booth_service.bulk" in words and generation.id in words:
            found.append(process)
    return found


def finished(store: ObjectStore, generation: booth.Generation) -> dict[str, datetime]:
    """The pictures of its blocks that have a record, and when each was put."""
    pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=store.bucket, Prefix="tenants/")
    put = {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", [])}
    records = [key for key in put if f"/generations/{generation.id}/blocks/" in key]
    blocks = [DrawnBlock.model_validate_json(store.get(key)) for key in records]
    return {picture.key: put[picture.key] for block in blocks for picture in block.pictures}


def store_of(machine: OneMachine) -> ObjectStore:
    """The machine's object store, with its credentials."""
    directory = DataDir(machine.data_dir)
    settings = environment.service(directory, directory.load_state())
    os.environ.update({name: value for name, value in settings.items() if name.startswith("AWS_")})
    return ObjectStore(settings["BOOTH_S3_BUCKET"], settings["BOOTH_S3_ENDPOINT_URL"], settings["BOOTH_S3_REGION"])
