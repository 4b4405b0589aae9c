"""Submitting, waiting, events and logs, against a real HTTP server with scripted answers."""

import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import photo_files as files
import pytest
from scripted_service import (
    CUT,
    DONE,
    EVENTS,
    MODEL,
    PARAMS,
    PREPARED,
    ScriptedService,
    event,
    job_record,
    log,
    page,
    problem,
    sent_json,
)

from booth import (
    BoothWarning,
    Client,
    ConflictError,
    ImageValidationError,
    JobCancelledError,
    JobFailedError,
    JobState,
    TransferError,
    UnavailableError,
    ValidationError,
    WaitTimeoutError,
)
from booth.contract.jobs import JobFailure, JobPage, UploadTarget
from booth.contract.models import BaseModelPage
from booth.contract.states import FailureReason
from booth.images import collect

LOGS = "/v1/jobs/job_1/logs"


@pytest.fixture
def client(service: ScriptedService) -> Iterator[Client]:
    with Client(service.url, "key") as client:
        client._transport.sleep = lambda _: None
        service.on("GET", "/v1/jobs/job_1", job_record())
        service.on("GET", "/v1/models/mdl_1", MODEL)
        yield client


@pytest.fixture
def accepting(service: ScriptedService) -> ScriptedService:
    service.on("POST", "/v1/jobs/prepare", PREPARED)
    service.on("POST", "/v1/jobs", job_record())
    return service


def test_personalize_sends_the_missing_photos_alone(client: Client, accepting: ScriptedService, tmp_path: Path) -> None:
    first, second = files.good_photos(tmp_path, 2)
    hashes = [photo.sha256 for photo in collect([first, second]).photos]
    targets = [UploadTarget(sha256=hashes[0]), UploadTarget(sha256=hashes[1], url=f"{accepting.url}/put/2?sig=x")]
    accepting.on("POST", "/v1/jobs/prepare", PREPARED.model_copy(update={"uploads": targets}))
    accepting.on("PUT", "/put/2", 500, 200)
    seen: list[tuple[int, int, str]] = []

    job = client.personalize([first, second], "sks", "dog", steps=5, on_upload=lambda *step: seen.append(step))

    assert [call.body for call in accepting.asked("PUT", "/put/2")] == [second.read_bytes()] * 2
    size = second.stat().st_size
    assert seen == [(size, size, "01.jpg")]
    [submitted] = accepting.asked("POST", "/v1/jobs")
    spec = sent_json(submitted)
    assert (spec["token"], spec["class_noun"], spec["steps"]) == ("sks", "dog", 5)
    assert [photo["sha256"] for photo in spec["images"]] == hashes
    assert (job.id, job.status, job.params) == ("job_1", JobState.QUEUED, PARAMS)
    assert "\n" not in repr(job)


def test_a_refused_upload_makes_no_job(client: Client, accepting: ScriptedService, photo: Path) -> None:
    sha256 = collect(photo).photos[0].sha256
    target = UploadTarget(sha256=sha256, url=f"{accepting.url}/put/1")
    accepting.on("POST", "/v1/jobs/prepare", PREPARED.model_copy(update={"uploads": [target]}))
    accepting.on("PUT", "/put/1", 403)
    with pytest.raises(TransferError, match="403"):
        client.personalize(photo, "sks", "dog")
    assert accepting.asked("POST", "/v1/jobs") == []


def test_a_submission_cut_off_is_repeated_under_one_key(
    client: Client, accepting: ScriptedService, photo: Path
) -> None:
    accepting.on("POST", "/v1/jobs", CUT, 502, job_record())
    assert client.personalize(photo, "sks", "dog").id == "job_1"
    keys = [call.headers["Idempotency-Key"] for call in accepting.asked("POST", "/v1/jobs")]
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_two_submissions_have_two_keys_unless_one_is_given(
    client: Client, accepting: ScriptedService, photo: Path
) -> None:
    for key in (None, None, "mine"):
        client.personalize(photo, "sks", "dog", idempotency_key=key)
    first, second, third = (call.headers["Idempotency-Key"] for call in accepting.asked("POST", "/v1/jobs"))
    assert first != second
    assert third == "mine"


def test_the_services_warnings_are_python_warnings_each_once(
    client: Client, accepting: ScriptedService, photo: Path
) -> None:
    accepting.on("POST", "/v1/jobs/prepare", PREPARED.model_copy(update={"warnings": ["One photo is few."]}))
    accepting.on("POST", "/v1/jobs", job_record(warnings=["One photo is few."]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client.personalize(photo, "sks", "dog")
    [warning] = caught
    assert warning.category is BoothWarning
    assert str(warning.message) == "One photo is few."
    assert warning.filename == __file__


@pytest.mark.parametrize(
    ("dials", "field", "remedy"),
    [
        ({"learning_rate": math.nan}, "learning_rate = nan", "finite number"),
        ({"steps": 0}, "steps = 0", "Give 1 or more"),
        ({"steps": 10**9}, "steps = 1000000000", "Give 20000 or less"),
        ({"token": "  "}, "token = '  '", "at least 1 character"),
        ({"class_noun": ""}, "class_noun = ''", "at least 1 character"),
        ({"resolution": 100}, "resolution = 100", "multiple of 8"),
        ({"seed": -1}, "seed = -1", "Give 0 or more"),
        ({"options": {"weight_decayy": 0.1}}, "options.weight_decayy = 0.1", "Remove it or correct its spelling"),
    ],
)
def test_a_bad_dial_is_named_before_anything_is_sent(
    client: Client, service: ScriptedService, photo: Path, dials: dict[str, object], field: str, remedy: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        client.personalize(photo, **{"token": "sks", "class_noun": "dog", **dials})  # type: ignore[arg-type]
    assert field in str(caught.value)
    assert remedy in str(caught.value)
    assert service.calls == []


def test_all_bad_dials_and_all_bad_photos_are_in_one_error(
    client: Client, service: ScriptedService, tmp_path: Path
) -> None:
    files.text_named_jpg(tmp_path)
    files.truncated_jpeg(tmp_path)
    with pytest.raises(ValidationError) as caught:
        client.personalize(tmp_path, "", "dog", steps=0)
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["token", "steps", str(tmp_path / "notes.jpg"), str(tmp_path / "truncated.jpg")]
    assert service.calls == []


def test_an_unknown_base_model_is_named_beside_the_rest(client: Client, service: ScriptedService, photo: Path) -> None:
    service.on("GET", "/v1/base-models", BaseModelPage(base_models=[]))
    with pytest.raises(ValidationError) as caught:
        client.personalize(photo, "sks", "dog", steps=0, base_model="nope")
    assert [problem.field for problem in caught.value.problems] == ["steps", "base_model"]


def test_bad_dials_are_named_though_the_service_is_away(photo: Path) -> None:
    with Client("http://127.0.0.1:1", "key") as client, pytest.raises(ValidationError, match="steps = 0"):
        client.personalize(photo, "sks", "dog", steps=0, base_model="nope")


def test_bad_photos_alone_are_an_image_error(client: Client, service: ScriptedService, tmp_path: Path) -> None:
    files.good_photos(tmp_path, 2)
    files.text_named_jpg(tmp_path)
    with pytest.raises(ImageValidationError, match=r"1 problem with the photos:\n.*notes\.jpg"):
        client.personalize(tmp_path, "sks", "dog")
    assert service.calls == []


def test_wait_gives_the_model_after_all_events(client: Client, service: ScriptedService) -> None:
    first, second, third = event(1, JobState.QUEUED), event(2, JobState.TRAINING), event(3, JobState.SUCCEEDED)
    service.on("GET", EVENTS, page(first, second), page(), page(third, job=DONE), page(job=DONE))
    seen = []
    model = client.jobs.get("job_1").wait(on_event=seen.append)
    assert seen == [first, second, third]
    assert (model.id, model.prompt_prefix) == ("mdl_1", "sks dog")
    assert [call.query["after"] for call in service.asked("GET", EVENTS)] == ["0", "2", "2", "3"]


def test_events_go_on_behind_a_dropped_connection(client: Client, service: ScriptedService) -> None:
    first, second = event(1, JobState.QUEUED), event(2, JobState.SUCCEEDED)
    away = [CUT, 503, CUT, 503, 503]
    service.on("GET", EVENTS, page(first), *away, page(second, job=DONE), page(job=DONE))
    assert list(client.jobs.get("job_1").events()) == [first, second]
    assert {call.query["after"] for call in service.asked("GET", EVENTS)[1:-1]} == {"1"}


def test_events_of_a_lost_service_end_in_its_error(
    client: Client, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("booth.jobs.PATIENCE_S", 0.0)
    service.on("GET", EVENTS, 503)
    with pytest.raises(UnavailableError):
        list(client.jobs.get("job_1").events())


def test_a_failed_job_raises_with_reason_and_remedy(client: Client, service: ScriptedService) -> None:
    reason = FailureReason.NOT_FINITE
    failure = JobFailure(reason=reason, message=reason.message, remedy=reason.remedy, detail="at step 3")
    service.on("GET", EVENTS, page(job=job_record(JobState.FAILED, error=failure)))
    with pytest.raises(
        JobFailedError, match=r"stopped being a finite number\. \(at step 3\) Lower learning_rate"
    ) as caught:
        client.jobs.get("job_1").wait()
    assert caught.value.job.error == failure


def test_a_cancelled_job_raises(client: Client, service: ScriptedService) -> None:
    service.on("GET", EVENTS, page(job=job_record(JobState.CANCELLED)))
    with pytest.raises(JobCancelledError, match="job_1 was cancelled"):
        client.jobs.get("job_1").wait()


def test_a_wait_that_runs_out_says_that_the_job_goes_on(client: Client, service: ScriptedService) -> None:
    service.on("GET", EVENTS, page())
    with pytest.raises(WaitTimeoutError, match="job_1 is still training and goes on"):
        client.jobs.get("job_1").wait(timeout_s=0)
    assert [call.query["wait_s"] for call in service.asked("GET", EVENTS)] == ["0"]


def test_cancelling_a_finished_job_is_a_conflict(client: Client, service: ScriptedService) -> None:
    service.on("POST", "/v1/jobs/job_1/cancel", problem("conflict", 409, "The job is over."))
    with pytest.raises(ConflictError, match="The job is over"):
        client.jobs.get("job_1").cancel()


def test_logs_end_where_there_is_no_more(client: Client, service: ScriptedService) -> None:
    service.on("GET", LOGS, log("ab", 2), log("", 2))
    assert "".join(client.jobs.get("job_1").logs()) == "ab"


def test_followed_logs_go_on_until_the_job_is_over(client: Client, service: ScriptedService) -> None:
    service.on("GET", LOGS, log("a", 1), log("", 1), log("b", 2), log("", 2, complete=True))
    service.on("GET", "/v1/jobs/job_1", job_record(), job_record(JobState.TRAINING), DONE)
    assert "".join(client.jobs.get("job_1").logs(follow=True)) == "ab"
    assert service.asked("GET", LOGS)[-1].query["offset"] == "2"


def test_the_log_of_a_new_attempt_is_read_from_its_beginning(client: Client, service: ScriptedService) -> None:
    service.on("GET", LOGS, log("first", 5), log("", 9, attempt=2), log("second", 6, attempt=2), log("", 6, attempt=2))
    assert list(client.jobs.get("job_1").logs()) == ["first", "second"]


def test_lists_go_over_all_pages(client: Client, service: ScriptedService) -> None:
    service.on(
        "GET", "/v1/jobs", JobPage(jobs=[job_record(id="job_2")], next_after="job_2"), JobPage(jobs=[job_record()])
    )
    assert [job.id for job in client.jobs.list(status="queued")] == ["job_2", "job_1"]
    assert [call.query for call in service.asked("GET", "/v1/jobs")] == [
        {"status": "queued"},
        {"status": "queued", "after": "job_2"},
    ]
