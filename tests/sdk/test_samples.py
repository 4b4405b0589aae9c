"""A job's sample pictures: listed, fetched when looked at, checked, and in one strip. Against a real HTTP server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scripted_service import (
    CUT,
    PARAMS,
    PROMPTS,
    SAMPLES,
    ScriptedService,
    job_record,
    sample_colour,
    sample_png,
    sampled,
)

from booth import Client, Job, NotFoundError, TransferError
from booth.contract.samples import JobSamples
from booth.samples import MAX_COLUMNS
from booth.strip import GAP_PX, HEADER_PX, LABEL_PX, MIN_CELL_PX


@pytest.fixture
def job(service: ScriptedService) -> Iterator[Job]:
    service.on("GET", "/v1/jobs/job_1", job_record())
    service.on("GET", SAMPLES, sampled(service, 2, 4))
    with Client(service.url, "key") as client:
        client._transport.sleep = lambda _: None
        yield client.jobs.get("job_1")


def test_pictures_are_listed_by_step_and_fetched_once_when_looked_at(
    job: Job, service: ScriptedService, tmp_path: Path
) -> None:
    strips = job.samples()
    assert [strip.step for strip in strips] == [2, 4]
    second = strips[1].pictures[1]
    assert (second.step, second.prompt, second.seed) == (4, PROMPTS[1], 7)
    assert not any(call.path.startswith("/s3/") for call in service.calls)
    assert second.png == sample_png(4, 1)
    assert second.image.getpixel((0, 0)) == sample_colour(4, 1)
    assert second.save(tmp_path / "a.png").read_bytes() == sample_png(4, 1)
    assert Image.open(second.save(tmp_path / "a.jpg")).format == "JPEG"
    fetched = [call.path for call in service.calls if call.path.startswith("/s3/")]
    assert fetched == ["/s3/4/1"]
    assert "Authorization" not in service.asked("GET", "/s3/4/1")[0].headers


@pytest.mark.parametrize("answer", [403, 503, CUT, b"other bytes"])
def test_a_link_that_fails_is_asked_for_again(job: Job, service: ScriptedService, answer: int | bytes) -> None:
    picture = job.samples()[0].pictures[0]
    service.on("GET", "/s3/fresh", sample_png(2, 0))
    renewed = sampled(service, 2, 4).model_dump()
    renewed["steps"][0]["pictures"][0]["url"] = f"{service.url}/s3/fresh"
    service.on("GET", SAMPLES, JobSamples.model_validate(renewed))
    service.on("GET", "/s3/2/0", answer)
    assert picture.png == sample_png(2, 0)
    assert len(service.asked("GET", SAMPLES)) == 2


def test_a_picture_that_never_comes_right_is_an_error(job: Job, service: ScriptedService) -> None:
    picture = job.samples()[0].pictures[0]
    service.on("GET", "/s3/2/0", b"other bytes")
    with pytest.raises(TransferError, match="SHA-256"):
        _ = picture.png


def test_one_strip_shows_steps_beside_each_other(job: Job) -> None:
    strip = job.sample_strip()
    pitch = MIN_CELL_PX + GAP_PX
    for column, step in enumerate([2, 4]):
        for row in range(2):
            x, y = LABEL_PX + column * pitch + pitch // 2, HEADER_PX + row * pitch + pitch // 2
            assert strip.getpixel((x, y)) == sample_colour(step, row)


def test_a_strip_of_very_many_steps_shows_some_with_the_first_and_the_last(job: Job, service: ScriptedService) -> None:
    service.on("GET", SAMPLES, sampled(service, *range(100)))
    strip = job.sample_strip()
    assert strip.width == LABEL_PX + MAX_COLUMNS * (MIN_CELL_PX + GAP_PX)
    y = HEADER_PX + 5
    reds = [strip.getpixel((LABEL_PX + 5 + column * (MIN_CELL_PX + GAP_PX), y))[0] for column in range(MAX_COLUMNS)]
    assert (reds[0], reds[-1]) == (0, 99)
    assert reds == sorted(set(reds))
    assert len([call for call in service.calls if call.path.startswith("/s3/")]) == 2 * MAX_COLUMNS


@pytest.mark.parametrize(("interval", "remedy"), [(0, "options.sample_interval_steps"), (50, "by step 50")])
def test_a_job_without_samples_says_why(service: ScriptedService, interval: int, remedy: str) -> None:
    params = PARAMS.model_copy(update={"sample_interval_steps": interval})
    service.on("GET", "/v1/jobs/job_1", job_record(params=params))
    service.on("GET", SAMPLES, JobSamples(steps=[]))
    with Client(service.url, "key") as client:
        job = client.jobs.get("job_1")
        assert job.samples() == []
        with pytest.raises(NotFoundError, match="job_1 has no sample pictures") as caught:
            job.sample_strip()
    assert remedy in str(caught.value)
