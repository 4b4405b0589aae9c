"""Every object key. Tenants' objects lie under their own prefix; base models and class sets under shared ones, and
pictures that links were given for by their day, so that a whole day goes at once."""

import re
from datetime import date

TENANTS = "tenants/"
"""Below it lies all that belongs to someone."""


PICTURES = "pictures/"
"""Below it lie generated pictures that links were given for."""


def picture(tenant_id: str, day: date, picture_id: str) -> str:
    """A generated picture, by the day it was drawn on."""
    return f"{PICTURES}{day.isoformat()}/{tenant_id}/{picture_id}.png"


def pictures_day(folder: str) -> date | None:
    """The day of a folder below PICTURES, or None where it is no day's."""
    found = re.fullmatch(rf"{PICTURES}(\d{{4}}-\d\d-\d\d)/", folder)
    return date.fromisoformat(found[1]) if found else None


def upload(tenant_id: str, sha256: str) -> str:
    """A photo or mask as the user sent it, until the job is accepted."""
    return f"tenants/{tenant_id}/uploads/{sha256}"


def photo(tenant_id: str, sha256: str) -> str:
    """A photo re-encoded: upright, RGB, no metadata. Named by the hash of the upload."""
    return f"tenants/{tenant_id}/photos/{sha256}.png"


def class_photo(tenant_id: str, sha256: str) -> str:
    """The record of a user's own class image, put after the picture itself (`photo`) was checked and stored."""
    return f"tenants/{tenant_id}/photos/{sha256}.json"


def mask(tenant_id: str, sha256: str) -> str:
    """A photo's mask re-encoded as 8-bit gray. Named by the hash of the upload."""
    return f"tenants/{tenant_id}/masks/{sha256}.png"


def attempt(tenant_id: str, job_id: str, attempt: int) -> str:
    """The prefix that one attempt may write to."""
    return f"tenants/{tenant_id}/jobs/{job_id}/a{attempt}"


def attempt_of(key: str) -> str | None:
    """The prefix of the attempt that an object belongs to, or None where it is no attempt's."""
    found = re.match(r"tenants/[^/]+/jobs/[^/]+/a\d+(?=/)", key)
    return found[0] if found else None


def attempt_log(tenant_id: str, job_id: str, number: int) -> str:
    """What the driver printed, kept when the attempt has ended."""
    return f"{attempt(tenant_id, job_id, number)}/driver.log"


def model_file(tenant_id: str, job_id: str, number: int, path: str) -> str:
    """A changed file of the model, by its path in the diffusers folder."""
    return f"{attempt(tenant_id, job_id, number)}/model/{path}"


def model_chunk(file_key: str, part: int) -> str:
    """Part `part` (from 0) of a model's file that is stored as its difference to a reference."""
    return f"{file_key}.delta/{part:05d}"


def model_manifest(tenant_id: str, job_id: str, number: int) -> str:
    """The model's manifest, written last."""
    return f"{attempt(tenant_id, job_id, number)}/model/manifest.json"


def checkpoint_file(tenant_id: str, job_id: str, number: int, step: int, name: str) -> str:
    """One file of the checkpoint after `step` optimizer steps."""
    return f"{attempt(tenant_id, job_id, number)}/checkpoints/{step:08d}/{name}"


def sample_file(tenant_id: str, job_id: str, number: int, step: int, name: str) -> str:
    """One sample picture, drawn after `step` optimizer steps."""
    return f"{attempt(tenant_id, job_id, number)}/{sample_path(step, name)}"


def score_file(tenant_id: str, job_id: str, number: int, step: int, name: str) -> str:
    """A scored picture, or the record of the whole score, of the weights after `step` optimizer steps."""
    return f"{attempt(tenant_id, job_id, number)}/scores/{step:08d}/{name}"


def sample_path(step: int, name: str) -> str:
    """A sample picture's place below its attempt's prefix."""
    return f"samples/{step:08d}/{name}"


def run(kind: str, tenant_id: str, run_id: str) -> str:
    """The prefix of all that a run (a generation, an evaluation, a group) stores."""
    return f"tenants/{tenant_id}/{kind}s/{run_id}"


def run_log(run: str, attempt: int) -> str:
    """What an attempt's driver printed, kept when it has ended."""
    return f"{run}/a{attempt}.log"


def report_file(run: str, attempt: int, name: str) -> str:
    """A file of the report that an attempt of the run ended with."""
    return f"{run}/report-a{attempt}/{name}"


def generation(tenant_id: str, generation_id: str) -> str:
    """The prefix of all that a generation stores."""
    return run("generation", tenant_id, generation_id)


def generation_prompts(generation: str) -> str:
    """What it draws, put before it can run."""
    return f"{generation}/prompts.json"


def generation_picture(generation: str, index: int, sha256: str) -> str:
    """One picture. Its own hash is in the key, as in a class image's."""
    return f"{generation}/pictures/{index:06d}-{sha256[:16]}.png"


def generation_block(generation: str, first: int) -> str:
    """The record of the block that begins with picture `first`, written after all that it names."""
    return f"{generation}/blocks/{first:06d}.json"


def generation_manifest(generation: str, attempt: int) -> str:
    """All its pictures, complete; of each attempt that came so far, one."""
    return f"{generation}/manifest-a{attempt}.json"


def evaluation(tenant_id: str, evaluation_id: str) -> str:
    """The prefix of all that an evaluation stores."""
    return run("evaluation", tenant_id, evaluation_id)


def evaluation_arm(evaluation: str, number: int) -> str:
    """The prefix of an arm's pictures, which lie below it as those of a generation do."""
    return f"{evaluation}/arms/{number:02d}"


def encoded_block(arm: str, suite_id: str, first: int) -> str:
    """What a suite made of the pictures from number `first` on: the record, written after the vectors it names."""
    return f"{arm}/encoded/{suite_id}/{first:06d}.json"


def block_vectors(arm: str, suite_id: str, first: int, sha256: str) -> str:
    """Vectors and labels of those pictures. Their own hash is in the key, as a picture's is."""
    return f"{arm}/encoded/{suite_id}/{first:06d}-{sha256[:16]}.safetensors"


def block_thumbnails(arm: str, first: int, sha256: str) -> str:
    """Small copies of those pictures, for the report."""
    return f"{arm}/thumbnails/{first:06d}-{sha256[:16]}.safetensors"


def job_report_file(tenant_id: str, job_id: str, number: int, name: str) -> str:
    """A file of the report on a job's own scores."""
    return f"{attempt(tenant_id, job_id, number)}/report/{name}"


def base_file(sha256: str) -> str:
    """A file of a base model, by content."""
    return f"base-models/blobs/{sha256}"


def class_set(tenant_id: str | None, address: str) -> str:
    """The prefix of a class-image set: in the tenant's own place, or (None) where all tenants share it."""
    return f"class-sets/{address}" if tenant_id is None else f"tenants/{tenant_id}/class-sets/{address}"


def class_item(class_set: str, index: int, sha256: str) -> str:
    """One class image, lossless. Its own hash is in the key: what other hardware draws never takes its place."""
    return f"{class_set}/items/{index:06d}-{sha256[:16]}.png"


def class_moments(class_set: str, first: int, sha256: str) -> str:
    """Posterior moments of the block that begins with picture `first`."""
    return f"{class_set}/moments/{first:06d}-{sha256[:16]}.safetensors"


def class_block(class_set: str, first: int) -> str:
    """The record of a block, written after all that it names."""
    return f"{class_set}/blocks/{first:06d}.json"


def class_manifest(class_set: str, count: int) -> str:
    """The set's first `count` pictures, complete."""
    return f"{class_set}/manifest-{count:06d}.json"
