"""Many pictures by a job on the cluster, on all the real parts: the endpoint's bits, resumed, taken home."""

import json
from pathlib import Path

import pytest
from one_machine import OneMachine

import booth

pytestmark = pytest.mark.ray

PROMPTS = ["a photo of a teapot", "a photo of a cat on the beach", "a photo of a clock"]
SETTINGS = {"seed": 2**63 - 2, "num_inference_steps": 4, "negative_prompt": "a dog"}


def test_a_generation_draws_what_the_endpoint_draws_and_comes_home_whole(stack: OneMachine, tmp_path: Path) -> None:
    client = booth.Client(stack.base_url, stack.api_key)
    generation = client.generate_many(PROMPTS, num_images=3, **SETTINGS)
    assert (generation.status, generation.total) == (booth.GenerationState.QUEUED, 9)
    generation.wait(timeout_s=200)
    pictures = list(generation.pictures())
    assert [picture.index for picture in pictures] == list(range(9))
    assert [picture.seed for picture in pictures[:3]] == [2**63 - 2, 2**63 - 1, 0]

    # Four at a time, as the job's blocks are: bits are promised for batches of one size.
    drawn = client.generate([PROMPTS[0]], num_images=3, **SETTINGS) + client.generate(
        [PROMPTS[2]], num_images=4, **SETTINGS
    )
    assert [picture.png for picture in pictures[:3] + pictures[6:]] == [each.png for each in drawn[:6]]

    folder = generation.download(tmp_path / "out")
    lines = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert [line["file"] for line in lines] == [picture.name for picture in pictures]
    assert [line["prompt"] for line in lines] == [prompt for prompt in PROMPTS for _ in range(3)]
    assert (folder / lines[4]["file"]).read_bytes() == pictures[4].png
    generation.delete()
    with pytest.raises(booth.NotFoundError):
        generation.refresh()
