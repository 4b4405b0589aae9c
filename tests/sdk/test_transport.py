"""The HTTP seam: what is repeated, how long it pauses, and which exception a problem becomes."""

from datetime import UTC, datetime, timedelta

import httpx2
import pytest
from scripted_service import job_record, problem

from booth import errors
from booth.config import Config
from booth.contract.jobs import JobRecord
from booth.contract.problems import FieldProblem
from booth.transport import MAX_RETRIES, Transport

Answer = httpx2.Response | Exception


class Line:
    """A transport over scripted answers, with the pauses and requests it made."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []
        self.pauses: list[float] = []
        config = Config("http://booth.test", "booth_id_secret")
        self.transport = Transport(config, httpx2.MockTransport(self._answer), self.pauses.append)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get(self) -> JobRecord:
        return self.transport.get("/v1/jobs/job_1", JobRecord)


def good() -> httpx2.Response:
    return httpx2.Response(200, content=job_record().model_dump_json())


def bad(code: str, status: int, headers: dict[str, str] | None = None, **more: object) -> httpx2.Response:
    return httpx2.Response(status, headers=headers, content=problem(code, status, **more).model_dump_json())


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_error_is_repeated(status: int) -> None:
    line = Line(httpx2.Response(status), good())
    assert line.get().id == "job_1"
    assert len(line.pauses) == 1
    assert 0.375 <= line.pauses[0] <= 0.625


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422])
def test_a_lasting_error_is_not_repeated(status: int) -> None:
    line = Line(httpx2.Response(status))
    with pytest.raises(errors.APIError):
        line.get()
    assert line.pauses == []


@pytest.mark.parametrize("error", [httpx2.ConnectError("refused"), httpx2.ReadError("cut"), httpx2.ReadTimeout("late")])
def test_a_dropped_connection_is_repeated_with_growing_pauses(error: Exception) -> None:
    line = Line(error, error, good())
    assert line.get().id == "job_1"
    assert line.pauses[1] > line.pauses[0]


def test_it_gives_up_after_the_last_retry_and_says_what_to_check() -> None:
    line = Line(*[httpx2.ConnectError("refused")] * 3)
    with pytest.raises(errors.APIConnectionError, match=r"booth\.test did not answer.*refused.*boothctl up"):
        line.get()
    assert len(line.requests) == MAX_RETRIES + 1


def test_a_late_answer_is_a_timeout() -> None:
    line = Line(*[httpx2.ReadTimeout("late")] * 3)
    with pytest.raises(errors.APITimeoutError, match="in time"):
        line.get()


def test_a_post_without_a_key_is_sent_once() -> None:
    line = Line(httpx2.Response(503))
    with pytest.raises(errors.UnavailableError):
        line.transport.post("/v1/x", JobRecord)
    cut = Line(httpx2.ReadError("cut"))
    with pytest.raises(errors.APIConnectionError):
        cut.transport.post("/v1/x", JobRecord)
    assert (len(line.requests), len(cut.requests)) == (1, 1)


def test_a_post_that_never_reached_the_server_is_repeated() -> None:
    line = Line(httpx2.ConnectError("refused"), good())
    assert line.transport.post("/v1/x", JobRecord).id == "job_1"


def test_a_post_with_a_key_is_repeated_with_the_same_key() -> None:
    line = Line(httpx2.ReadError("cut"), httpx2.Response(502), good())
    line.transport.post("/v1/jobs", JobRecord, idempotency_key="k1")
    assert [request.headers["Idempotency-Key"] for request in line.requests] == ["k1"] * 3


def test_retry_after_in_seconds_is_obeyed() -> None:
    line = Line(bad("busy", 429, {"Retry-After": "17"}), good())
    line.get()
    assert line.pauses == [17.0]


def test_retry_after_as_a_date_is_obeyed() -> None:
    later = (datetime.now(UTC) + timedelta(seconds=60)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    line = Line(bad("unavailable", 503, {"Retry-After": later}), good())
    line.get()
    assert 30 < line.pauses[0] <= 60


def test_a_nonsense_retry_after_falls_back_to_the_usual_pause() -> None:
    line = Line(bad("busy", 429, {"Retry-After": "soon"}), good())
    line.get()
    assert line.pauses[0] < 1


def test_a_wait_of_more_than_two_minutes_is_the_callers_to_decide() -> None:
    line = Line(bad("paused", 503, {"Retry-After": "121"}, title="Inference is paused by job_9."))
    with pytest.raises(errors.PausedError, match="paused by job_9"):
        line.get()
    assert line.pauses == []


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("bad_request", 400, errors.APIError),
        ("unauthenticated", 401, errors.AuthenticationError),
        ("not_found", 404, errors.NotFoundError),
        ("conflict", 409, errors.ConflictError),
        ("busy", 429, errors.BusyError),
        ("internal", 500, errors.APIError),
        ("unavailable", 503, errors.UnavailableError),
        ("paused", 503, errors.PausedError),
    ],
)
def test_each_code_has_its_exception(code: str, status: int, kind: type[errors.APIError]) -> None:
    with pytest.raises(errors.APIError) as caught:
        Line(*[bad(code, status, {"Retry-After": "0"}) for _ in range(3)]).get()
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.status, caught.value.request_id) == (code, status, "req-1")


def test_field_problems_become_one_exception_that_names_all() -> None:
    fields = [FieldProblem(field=name, value="0", message="Too low.", remedy="Give 1.") for name in ("steps", "seed")]
    with pytest.raises(errors.ValidationError, match=r"(?s)steps = 0: Too low\. Give 1\..*seed = 0") as caught:
        Line(bad("invalid", 422, problems=fields)).get()
    assert not isinstance(caught.value, errors.ImageValidationError)


def test_problems_of_photos_alone_become_an_image_error() -> None:
    fields = [FieldProblem(field="images.2", value="c.jpg", message="Damaged.")]
    with pytest.raises(errors.ImageValidationError, match=r"c\.jpg"):
        Line(bad("invalid", 422, problems=fields)).get()


def test_an_answer_that_is_no_problem_document_keeps_status_and_request_id() -> None:
    page = httpx2.Response(404, headers={"X-Request-Id": "abc"}, content="<html>nginx</html>")
    with pytest.raises(errors.NotFoundError, match="status 404") as caught:
        Line(page).get()
    assert caught.value.request_id == "abc"


@pytest.mark.parametrize("content", ["<html>a login page</html>", '{"id": 1}'])
def test_an_answer_of_something_else_is_named(content: str) -> None:
    with pytest.raises(errors.APIError, match="not what a Booth service says"):
        Line(httpx2.Response(200, content=content)).get()


def test_the_key_goes_to_the_service_and_to_no_link() -> None:
    line = Line(good(), httpx2.Response(200))
    line.get()
    line.transport.put_link("http://s3.test/photo?X-Amz-Signature=abc", b"data")
    assert line.requests[0].headers["Authorization"] == "Bearer booth_id_secret"
    assert "Authorization" not in line.requests[1].headers


def test_a_refused_upload_is_named_without_its_signature() -> None:
    with pytest.raises(errors.TransferError, match=r"s3\.test/photo refused an upload .* 403") as caught:
        Line(httpx2.Response(403)).transport.put_link("http://s3.test/photo?X-Amz-Signature=abc", b"data")
    assert "Signature" not in str(caught.value)


def test_a_refused_download_is_named_without_its_signature() -> None:
    transport = Line(httpx2.Response(403)).transport
    with (
        pytest.raises(errors.TransferError, match=r"s3\.test/file refused a download .* 403") as caught,
        transport.get_link("http://s3.test/file?X-Amz-Signature=abc"),
    ):
        pass
    assert "Signature" not in str(caught.value)
