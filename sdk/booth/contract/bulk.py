"""Between control plane and the driver of a generation: its brief, what it stores, and its report.

The driver authenticates and is fenced as a job's (`contract.attempts`), and beats as one.

GET  /internal/runs/{id}/{attempt}            GenerationBrief
POST /internal/runs/{id}/{attempt}/beat       Beat -> BeatReply
POST /internal/runs/{id}/{attempt}/done       Finished
POST /internal/runs/{id}/{attempt}/failed     Failed
"""

from booth.contract.base import Record
from booth.contract.serving import DrawRequest

CHECKING_PHASE = "checking"  # the phase in which `step` counts pictures of earlier attempts that were looked at
DRAWING_PHASE = "drawing"  # the phase in which it counts all that stand


class GenerationBrief(Record):
    """All that an attempt needs to know. `request` has no draws: they come from the prompts, `num_images` for each.

    Pictures are drawn in blocks of `block_size` by consecutive numbers, each block as one batch.
    """

    generation_id: str
    tenant_id: str
    attempt: int
    fence: int
    request: DrawRequest
    prompts_sha256: str
    num_images: int
    seed: int
    negative_prompt: str
    block_size: int
    total: int
    serving_gpus: float


class Prompts(Record):
    """The prompts of a generation, as they lie in the object store."""

    prompts: list[str]


class DrawnPicture(Record):
    """A stored PNG: which it is, where it lies, and what its bytes are."""

    index: int
    prompt: str
    seed: int
    batch_size: int
    key: str
    bytes: int
    sha256: str


class DrawnBlock(Record):
    """The record of a block, put after all that it names: pictures `first` and those after it."""

    first: int
    pictures: list[DrawnPicture]


class GenerationManifest(Record):
    """All pictures of a generation by number, put last."""

    generation_id: str
    attempt: int
    pictures: list[DrawnPicture]


class Finished(Record):
    """All that a run is for is stored; the manifest names it."""

    fence: int
    manifest_key: str
    manifest_sha256: str
