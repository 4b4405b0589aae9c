"""Between control plane and the Serve application: which model, and what to draw with it.

The control plane resolves the model in SQL and names its manifest by key and hash; Serve trusts nothing else.

POST /         DrawRequest -> DrawAnswer, or a DrawRefusal with status 422, 429 (Retry-After), 503 or 504
POST /stream   DrawRequest -> server-sent events, `data:` a DrawEvent each; the last one is "done" or "refused"
POST /warm     ModelRef -> 204 when its weights lie in host memory
POST /forget   ForgetRequest -> 204
GET  /healthz  200

The call's ROUTING_HEADER names the model, so that Serve sends all calls for one model to one replica while it has room.
A replica asks the control plane from time to time, POST DELETED_PATH HeldModels -> HeldModels: those of its models that
were deleted.
"""

from typing import Literal

from booth.contract.attempts import StoredFile
from booth.contract.base import Record
from booth.contract.drawing import PromptEdit, SchedulerName

SECRET_HEADER = "x-booth-stack-secret"
ROUTING_HEADER = "x-session-id"  # the one that Ray Serve's consistent-hash router keys on
STREAM_PATH = "/stream"
WARM_PATH = "/warm"
FORGET_PATH = "/forget"
DELETED_PATH = "/internal/serving/deleted"


class ModelRef(Record):
    """A model to draw with. `manifest_key` is None for a base model alone."""

    model_id: str
    base_model: str
    base_files: list[StoredFile]
    manifest_key: str | None = None
    manifest_sha256: str | None = None

    @property
    def routing_key(self) -> str:
        """The same for all calls that want the same weights."""
        return self.manifest_sha256 or self.model_id


class ForgetRequest(Record):
    """A model that was deleted: no copy of it may stay."""

    manifest_sha256: str


class HeldModels(Record):
    """Models that somebody holds copies of, by the SHA-256 of their manifests."""

    manifest_sha256s: list[str]


class Draw(Record):
    """One picture to draw; with an edit, that of `edit.source_prompt` is drawn beside it."""

    prompt: str
    negative_prompt: str
    seed: int
    edit: PromptEdit | None = None


class DrawRequest(Record):
    """Pictures to draw with one model and one setting, all within `timeout_s`.

    `image_base64` (any format that Pillow reads) is where drawing starts from (img2img), `strength` how far it goes
    from there, 0 to 1. A preview is made every `preview_interval_steps`, never for 0.
    """

    model: ModelRef
    draws: list[Draw]
    guidance_scale: float
    num_inference_steps: int
    width: int
    height: int
    scheduler: SchedulerName = "base"
    image_base64: str | None = None
    strength: float = 0.8
    preview_interval_steps: int = 0
    timeout_s: float = 600.0


class Drawn(Record):
    """A PNG file in base64. `batch_size` rows were sampled together: between other sizes the last digits differ."""

    png_base64: str
    source_png_base64: str | None = None
    batch_size: int = 0


class DrawAnswer(Record):
    """What was drawn, in the order of the draws."""

    pictures: list[Drawn]


class DrawRefusal(Record):
    """Why nothing was drawn. `reason` is "invalid", "busy", "timeout" or a FailureReason."""

    reason: str
    detail: str


class DrawEvent(Record):
    """What happens to a request. "step": denoising step `step` of `total_steps` is done for `places` of its draws, with
    a PNG in base64 for each in `previews` where one is due. "picture": draw `places[0]` is finished."""

    kind: Literal["step", "picture", "done", "refused"]
    step: int = 0
    total_steps: int = 0
    places: list[int] = []
    previews: list[str] = []
    picture: Drawn | None = None
    refusal: DrawRefusal | None = None
