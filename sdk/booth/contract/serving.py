"""Between control plane and the Serve application: which model, and what to draw with it.

The control plane resolves the model in SQL and names its manifest by key and hash; Serve trusts nothing else.
"""

from booth.contract.attempts import StoredFile
from booth.contract.base import Record

SECRET_HEADER = "x-booth-stack-secret"
FORGET_PATH = "/forget"


class ModelRef(Record):
    """A model to draw with. `manifest_key` is None for a base model alone."""

    model_id: str
    base_model: str
    base_files: list[StoredFile]
    manifest_key: str | None = None
    manifest_sha256: str | None = None


class ForgetRequest(Record):
    """A model that was deleted: no copy of it may stay."""

    manifest_sha256: str


class Draw(Record):
    """One picture to draw."""

    prompt: str
    negative_prompt: str
    seed: int


class DrawRequest(Record):
    """Pictures to draw with one model and one setting."""

    model: ModelRef
    draws: list[Draw]
    guidance_scale: float
    num_inference_steps: int
    resolution: int


class DrawAnswer(Record):
    """PNG files in base64, in the order of the draws."""

    pngs_base64: list[str]
