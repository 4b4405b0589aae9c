"""Between control plane and driver: the brief of an attempt, its beats, and how it ended.

The driver authenticates with a token of its attempt; a stale fence is answered with 409 and ends it.
"""

from booth.contract.base import Record
from booth.contract.jobs import Params, Progress
from booth.contract.models import Recipe
from booth.contract.scores import StepScore
from booth.contract.states import Desired, FailureReason, JobState

LEARNED_EMBEDDINGS = "learned_embeds.safetensors"
"""The artefact of a textual inversion, as diffusers' load_textual_inversion takes it."""


class StoredFile(Record):
    """A file in the object store. `path` is its place in a diffusers folder, `key` its object key.

    `sha256` is of the whole content; or, where `part_sha256` is there, of its parts' digests (`contract.digests`), each
    part of `part_bytes` but the last. With `delta` both are still those of the file as it is read. With `row` that row
    is all that the file has in place of the base model's.
    """

    path: str
    key: str
    bytes: int
    sha256: str
    part_bytes: int = 0
    part_sha256: list[str] = []
    delta: "Delta | None" = None
    row: "TrainedRow | None" = None


class TrainedRow(Record):
    """One row of one tensor of a weight file, counted from 0 along the tensor's first dimension."""

    tensor: str
    row: int


class Delta(Record):
    """How a file in parts is stored that lies under no key of its own: each part as a chunk, its lossless difference to
    the same bytes of a reference file (`contract.delta`). `coding` names the difference's format.

    The reference is as long as the file and stored whole. Sizes and digests of chunks are those of what is stored.
    """

    coding: str
    reference: StoredFile
    chunk_bytes: list[int]
    chunk_sha256: list[str]


StoredFile.model_rebuild()  # complete here, or its subclasses in other modules would look for Delta in vain


class InstancePhoto(StoredFile):
    """A stored photo with what it is trained as: its subject's number, its own caption, its mask. A held-out one is
    not trained on."""

    subject: int = 0
    caption: str | None = None
    mask: StoredFile | None = None
    held_out: bool = False


class ClassPhoto(StoredFile):
    """A class image of the user's own as stored: its subject's number, height and width in pixels."""

    subject: int = 0
    height: int
    width: int


class SampleStrip(Record):
    """Sample pictures of one step: one PNG for each of `Params.sample_prompts`, in order.

    `path` is below the attempt's prefix, such as "samples/00000200/00.png". `seeds` has one seed for each file, or none
    at all where they are not known.
    """

    step: int
    files: list[StoredFile]
    seeds: list[int] = []


class Manifest(Record):
    """What a model consists of. Written last, once; the record in SQL holds the hash of these bytes.

    `artefacts` are files beside the diffusers folder, which hold what was learned in another form.
    """

    job_id: str
    attempt: int
    fence: int
    base_model: str
    changed: list[StoredFile]
    unchanged: list[StoredFile]
    artefacts: list[StoredFile] = []
    params: Params

    @property
    def files(self) -> list[StoredFile]:
        """The whole diffusers folder."""
        return [*self.changed, *self.unchanged]


class Brief(Record):
    """All that an attempt needs to know."""

    job_id: str
    tenant_id: str
    attempt: int
    fence: int
    params: Params
    photos: list[InstancePhoto]
    base_model: str
    base_files: list[StoredFile]
    recipe: Recipe
    serving_gpus: float
    max_ranks: int
    min_zero_stage: int = 1
    first_step_limit_s: float
    class_photos: list[ClassPhoto] = []
    share_class_images: bool = False
    references: list[
        StoredFile
    ] = []  # what the untrained base gives in the format asked for; none: files are stored whole
    suite_files: list[StoredFile] = []  # of the encoders that the job is scored with
    adapter_files: list[StoredFile] = []  # the base's IP-Adapter, for jobs of the method "ip_adapter" alone
    scores: list[StepScore] = []  # that earlier attempts have made: they stand
    is_training: bool = False  # its gang is at work
    selected_step: int | None = None  # whose weights to publish, where that was chosen already
    is_last_try: bool = False  # should this attempt die, its job has failed: so that nothing is risked beside its model
    resume_key: str | None = None  # manifest of the last committed checkpoint, of any earlier attempt

    @property
    def trained_photos(self) -> list[InstancePhoto]:
        """The photos of all subjects that are trained on."""
        return [photo for photo in self.photos if not photo.held_out]

    @property
    def scored_photos(self) -> list[InstancePhoto]:
        """What pictures are compared with: all photos of the first subject."""
        return [photo for photo in self.photos if photo.subject == 0]


class Beat(Record):
    """A sign of life. `checkpoint_key` names the manifest of a checkpoint that was just committed.

    `samples` and `scores` are those that no earlier beat has brought; a repetition changes nothing. `selected_step` is
    whose weights will be published, where the job chooses.
    """

    fence: int
    state: JobState
    progress: Progress
    note: str | None = None
    warning: str | None = None
    checkpoint_key: str | None = None
    samples: list[SampleStrip] = []
    scores: list[StepScore] = []
    selected_step: int | None = None


class Found(Record):
    """What was found of an attempt's checkpoints beside its gang; a repetition changes nothing.

    With a `selected_step`, whose weights are the best and will stay it, its training ends; `note` says why.
    """

    fence: int
    scores: list[StepScore] = []
    selected_step: int | None = None
    note: str | None = None


class BeatReply(Record):
    """What the owner wants."""

    desired: Desired


class ClassSetLease(Record):
    """The answer to a claim: None where the attempt holds the lease now, else who does, in words for people."""

    holder: str | None = None


class Published(Record):
    """The attempt put its manifest; the control plane verifies it and decides."""

    fence: int
    manifest_key: str
    manifest_sha256: str


class Failed(Record):
    """The attempt ended without a model."""

    fence: int
    reason: FailureReason
    detail: str = ""
