"""The attempt's line to the control plane: its brief, its beats, and how it ended."""

import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import httpx2
from pydantic import SecretStr

from booth.contract.attempts import Beat, BeatReply, Brief, ClassSetLease, Failed, Found, Published, SampleStrip
from booth.contract.bulk import Finished, GenerationBrief
from booth.contract.evaluation import EvaluationBrief
from booth.contract.groups import CellPage, ClaimedCell, GroupBrief
from booth.contract.jobs import Progress
from booth.contract.scores import StepScore
from booth.contract.states import Desired, FailureReason, JobState
from booth_service.errors import AttemptEnded, BadWeights, ServiceError
from booth_service.settings import attempt_token

BEAT_INTERVAL_S = 1.0
IDLE_BEAT_INTERVAL_S = 10.0
LAST_WORDS_S = 20.0  # how long the end of a pulse waits for an API that is away
MAX_STRIPS_PER_BEAT = 50  # the API reads at most 1 MiB; a strip of eight pictures is some 3 KiB
MAX_SCORE_BYTES_PER_BEAT = 512 * 2**10  # a score names its memorised pictures: from 1 KiB to some 50


@dataclass(frozen=True)
class Line:
    """Talks for one attempt. Small and picklable, so that a rank on another node can talk too."""

    kind: ClassVar[str] = "attempts"
    api_url: str
    stack_secret: SecretStr
    job_id: str
    attempt: int

    def brief(self) -> Brief:
        """What to do. Raises AttemptEnded where a newer attempt took over."""
        return Brief.model_validate_json(self._call("GET", "").content)

    def beat(self, beat: Beat) -> Desired:
        """Say where the attempt is; returns what the owner wants."""
        return BeatReply.model_validate_json(self._call("POST", "/beat", beat.model_dump_json()).content).desired

    def claim_class_set(self, address: str) -> ClassSetLease:
        """Take the lease of a class-image set, or hear who holds it."""
        return ClassSetLease.model_validate_json(self._call("POST", f"/class-sets/{address}").content)

    def release_class_set(self, address: str) -> None:
        """Give the lease back."""
        self._call("DELETE", f"/class-sets/{address}")

    def found(self, found: Found) -> None:
        """Say what checkpoints came to, beside whoever beats for the attempt."""
        self._call("POST", "/found", found.model_dump_json())

    def published(self, published: Published) -> None:
        """Ask for the model to be made visible. Raises BadWeights where it fails verification."""
        self._call("POST", "/published", published.model_dump_json())

    def failed(self, fence: int, reason: FailureReason, detail: str) -> None:
        """Say why the attempt ends."""
        self._call("POST", "/failed", Failed(fence=fence, reason=reason, detail=detail[-4000:]).model_dump_json())

    def _call(self, method: str, path: str, content: str | None = None) -> httpx2.Response:
        url = f"{self.api_url}/internal/{self.kind}/{self.job_id}/{self.attempt}{path}"
        token = attempt_token(self.stack_secret, self.job_id, self.attempt)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        with httpx2.Client(transport=httpx2.HTTPTransport(retries=3), timeout=120, trust_env=False) as client:
            response = client.request(method, url, content=content, headers=headers)
        if response.status_code == 409:
            raise AttemptEnded(f"attempt {self.attempt} of {self.job_id} is over: {response.text}")
        if response.status_code == 422:
            raise BadWeights(response.text)
        if response.status_code >= 400:
            raise ServiceError(f"the control plane answered {response.status_code} to {method} {url}: {response.text}")
        return response


class RunLine(Line):
    """The same for an attempt of a run (a generation, an evaluation, a group); `job_id` is the run's id."""

    kind = "runs"

    def generation_brief(self) -> GenerationBrief:
        """What to draw. Raises AttemptEnded where a newer attempt took over or the model was deleted."""
        return GenerationBrief.model_validate_json(self._call("GET", "").content)

    def evaluation_brief(self) -> EvaluationBrief:
        """What to evaluate. Raises AttemptEnded as `generation_brief` does."""
        return EvaluationBrief.model_validate_json(self._call("GET", "").content)

    def group_brief(self) -> GroupBrief:
        """The cells to walk. Raises AttemptEnded where a newer attempt took over."""
        return GroupBrief.model_validate_json(self._call("GET", "").content)

    def claim_cell(self, job_id: str) -> ClaimedCell:
        """The job's next attempt is claimed for this group, where it waits for one."""
        return ClaimedCell.model_validate_json(self._call("POST", f"/cells/{job_id}").content)

    def cells(self) -> CellPage:
        """All cells of the group with all that they were scored."""
        return CellPage.model_validate_json(self._call("GET", "/cells").content)

    def done(self, finished: Finished) -> None:
        """Say that all of it is stored."""
        self._call("POST", "/done", finished.model_dump_json())


class Pulse:
    """Sends the latest state in a thread of its own, so that neither a slow nor an absent API slows the work.

    Use as a context manager. An API that is away is not an error: the next beat tries again.
    """

    def __init__(self, line: Line, fence: int, state: JobState, progress: Progress) -> None:
        self.desired = Desired.RUN
        self._line = line
        self._beat = Beat(fence=fence, state=state, progress=progress)
        self._notes: list[str] = []
        self._warnings: list[str] = []
        self._samples: list[SampleStrip] = []
        self._scores: list[StepScore] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join(timeout=LAST_WORDS_S + 10)

    def say(
        self,
        progress: Progress,
        *,
        state: JobState | None = None,
        note: str | None = None,
        warning: str | None = None,
        checkpoint_key: str | None = None,
        samples: SampleStrip | None = None,
        scores: list[StepScore] | None = None,
        selected_step: int | None = None,
    ) -> None:
        """Replace what the next beat says.

        Notes, warnings, strips of sample pictures, scores and the last checkpoint wait until they have been sent.
        """
        with self._lock:
            changes: dict[str, object] = {"progress": progress, "state": state}
            changes |= {"checkpoint_key": checkpoint_key, "selected_step": selected_step}
            self._beat = self._beat.model_copy(update={key: new for key, new in changes.items() if new is not None})
            self._notes += [note] if note else []
            self._warnings += [warning] if warning else []
            self._samples += [samples] if samples else []
            self._scores += scores or []
        self._wake.set()

    def check(self) -> None:
        """Raise AttemptEnded where the owner cancelled or a newer attempt took over."""
        if self.desired is Desired.CANCEL:
            raise AttemptEnded(f"{self._line.job_id} was asked to stop")

    def _run(self) -> None:
        while not self._stopped:
            woken = self._wake.wait(IDLE_BEAT_INTERVAL_S)
            self._wake.clear()
            if self._stopped:
                break
            self._send()
            if woken:
                time.sleep(BEAT_INTERVAL_S)
        deadline = time.monotonic() + LAST_WORDS_S
        while not self._send() and time.monotonic() < deadline:
            time.sleep(BEAT_INTERVAL_S)

    def _send(self) -> bool:
        """One beat; true where nothing that was said until then waits any more."""
        with self._lock:
            notes, warnings = len(self._notes), len(self._warnings)
            samples, scores = self._samples[:MAX_STRIPS_PER_BEAT], first_that_fit(self._scores)
            note, warning = "; ".join(self._notes) or None, "; ".join(self._warnings) or None
            said = {"note": note, "warning": warning, "samples": samples, "scores": scores}
            beat = self._beat.model_copy(update=said)
        try:
            self.desired = self._line.beat(beat)
        except AttemptEnded:
            self.desired = Desired.CANCEL
            return True
        except (ServiceError, httpx2.HTTPError):
            return False
        with self._lock:
            del self._notes[:notes], self._warnings[:warnings]
            del self._samples[: len(samples)], self._scores[: len(scores)]
            if self._beat.checkpoint_key == beat.checkpoint_key:
                self._beat = self._beat.model_copy(update={"checkpoint_key": None})
            return not self._samples and not self._scores


def first_that_fit(scores: list[StepScore]) -> list[StepScore]:
    """As many of the first scores as one beat may bring, and one at least."""
    taken, total_bytes = 0, 0
    for score in scores:
        total_bytes += len(score.model_dump_json())
        if taken and total_bytes > MAX_SCORE_BYTES_PER_BEAT:
            break
        taken += 1
    return scores[:taken]
