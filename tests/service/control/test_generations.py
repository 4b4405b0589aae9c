"""Generations over the API and through the reconciler, on both databases: admission, life cycle, pictures, end."""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import timedelta

import httpx2
import pytest
from control_plane import RECIPE, Clock, Cluster, Driver, User, both_databases, started

from booth.contract import limits
from booth.contract.bulk import DrawnBlock, DrawnPicture, GenerationBrief, GenerationManifest, Prompts
from booth_service.control.plane import Plane
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Generation, Model, RunAttempt
from booth_service.control.sweep import sweep
from booth_service.settings import attempt_token
from booth_service.storage import keys

PROMPTS = ["a photo of sks dog", "sks dog on the beach", "sks dog in the snow"]


def submit(user: User, target: str = "base-models/tiny", key: str | None = None, **spec) -> httpx2.Response:
    body = {"prompts": PROMPTS, "num_images": 2, "seed": 5, **spec}
    headers = {"Idempotency-Key": key or secrets.token_hex(4)}
    return user.http.post(f"/v1/{target}/generations", json=body, headers=headers)


@dataclass
class Bulk:
    """What a generation's driver does, over the driver's own API; `record` is what its owner sees."""

    plane: Plane
    user: User
    id: str
    number: int = 1

    @property
    def record(self) -> dict:
        return self.user.http.get(f"/v1/generations/{self.id}").json()

    @property
    def ray_job(self) -> str:
        return f"{self.id}-a{self.number}"

    def call(self, method: str, path: str = "", **body) -> httpx2.Response:
        token = attempt_token(self.plane.settings.stack_secret, self.id, self.number)
        url = f"/internal/runs/{self.id}/{self.number}{path}"
        headers = {"Authorization": f"Bearer {token}"}
        return self.user.http.request(
            method, url, json={"fence": self.number, **body} if body else None, headers=headers
        )

    def brief(self) -> GenerationBrief:
        return GenerationBrief.model_validate_json(self.call("GET").content)

    def beat(self, step: int, phase: str = "drawing") -> httpx2.Response:
        progress = {"phase": phase, "step": step, "total_steps": 6, "images_per_second": 2.0, "eta_s": 3.0}
        return self.call("POST", "/beat", state="preparing", progress=progress)

    def failed(self, reason: str) -> httpx2.Response:
        return self.call("POST", "/failed", reason=reason, detail="what happened")

    def draw(self, first: int) -> DrawnBlock:
        """A block is stored, as the drawing process does."""
        brief = self.brief()
        prefix = keys.generation(brief.tenant_id, self.id)
        pictures = []
        for index in range(first, min(first + brief.block_size, brief.total)):
            png = f"picture {index}".encode()
            digest = hashlib.sha256(png).hexdigest()
            key = keys.generation_picture(prefix, index, digest)
            self.plane.store.put(key, png)
            prompt, seed = PROMPTS[index // brief.num_images], brief.seed + index % brief.num_images
            pictures.append(
                DrawnPicture(
                    index=index, prompt=prompt, seed=seed, batch_size=4, key=key, bytes=len(png), sha256=digest
                )
            )
        block = DrawnBlock(first=first, pictures=pictures)
        self.plane.store.put(keys.generation_block(prefix, first), block.model_dump_json().encode())
        return block

    def drawn(self, *blocks: DrawnBlock) -> httpx2.Response:
        """The manifest of these blocks is stored and reported."""
        pictures = [picture for block in blocks for picture in block.pictures]
        manifest = GenerationManifest(generation_id=self.id, attempt=self.number, pictures=pictures)
        body = manifest.model_dump_json().encode()
        key = keys.generation_manifest(keys.generation(self.user.tenant_id, self.id), self.number)
        self.plane.store.put(key, body)
        return self.call("POST", "/done", manifest_key=key, manifest_sha256=hashlib.sha256(body).hexdigest())


def running(plane: Plane, user: User, target: str = "base-models/tiny", **spec) -> Bulk:
    """A generation whose first attempt runs."""
    answer = submit(user, target, **spec)
    assert answer.status_code == 202, answer.text
    Reconciler(plane).round()
    return Bulk(plane, user, answer.json()["id"])


def next_attempt(bulk: Bulk, cluster: Cluster, clock: Clock) -> Bulk:
    cluster.jobs[bulk.ray_job] = RayStatus.FAILED
    reconciler = Reconciler(bulk.plane)
    reconciler.round()
    clock.advance(60)
    reconciler.round()
    return Bulk(bulk.plane, bulk.user, bulk.id, bulk.number + 1)


@pytest.fixture
def model(plane, user, cluster) -> str:
    """A published model whose job is over."""
    driver = started(plane, user)
    driver.publish()
    cluster.jobs[driver.ray_job] = RayStatus.SUCCEEDED
    Reconciler(plane).round()
    return driver.job["model_id"]


@both_databases
def test_the_whole_life_of_a_generation(plane, user, cluster, model):
    bulk = running(plane, user, f"models/{model}", negative_prompt="a cat")
    assert cluster.programs[bulk.ray_job] == Generation.program
    brief = bulk.brief()
    assert (brief.total, brief.num_images, brief.seed, brief.block_size) == (6, 2, 5, 4)
    assert (brief.negative_prompt, brief.request.draws) == ("a cat", [])
    with plane.database.read() as session:
        published = session.get_one(Model, model)
    ref = brief.request.model
    assert (ref.model_id, ref.manifest_key) == (model, published.manifest_key)
    assert (ref.manifest_sha256, len(ref.base_files) > 0) == (published.manifest_sha256, True)
    assert brief.request.guidance_scale == RECIPE.guidance_scale
    prompts = plane.store.get(keys.generation_prompts(keys.generation(user.tenant_id, bulk.id)), brief.prompts_sha256)
    assert Prompts.model_validate_json(prompts).prompts == PROMPTS

    first = bulk.draw(0)
    assert bulk.beat(4).json() == {"desired": "run"}
    record = bulk.record
    assert (record["status"], record["done"], record["images_per_second"], record["eta_s"]) == ("running", 4, 2.0, 3.0)
    assert record["status_detail"] == "Drawing: 4 of 6 pictures."
    second = bulk.draw(4)
    answers = [bulk.drawn(first, second) for _ in range(2)]  # the answer to the first one was lost
    assert [answer.status_code for answer in answers] == [200, 200]
    record = bulk.record
    assert (record["status"], record["done"], record["eta_s"], record["error"]) == ("succeeded", 6, None, None)
    assert record["finished_at"] is not None
    assert record["settings"]["seed"] == 5
    assert bulk.beat(6).status_code == 409
    cluster.jobs[bulk.ray_job] = RayStatus.SUCCEEDED
    Reconciler(plane).round()
    log = plane.store.get(keys.run_log(keys.generation(user.tenant_id, bulk.id), 1))
    assert log == f"log of {bulk.ray_job}\n".encode()


def test_finished_pictures_come_in_pages_with_links_while_others_are_drawn(plane, user):
    bulk = running(plane, user)
    path = f"/v1/generations/{bulk.id}/pictures"
    assert user.http.get(path).json() == {"pictures": [], "next_after": None}
    bulk.draw(4)
    assert [each["index"] for each in user.http.get(path).json()["pictures"]] == [4, 5]
    assert user.http.get(path, params={"limit": 3}).json() == {"pictures": [], "next_after": 2}
    bulk.draw(0)
    page = user.http.get(path, params={"after": 2, "limit": 2}).json()
    assert [(each["index"], each["prompt"], each["seed"]) for each in page["pictures"]] == [
        (3, PROMPTS[1], 6),
        (4, PROMPTS[2], 5),
    ]
    assert page["next_after"] == 4
    assert httpx2.get(page["pictures"][0]["url"], trust_env=False).content == b"picture 3"
    assert user.http.get(path, params={"after": 5}).json() == {"pictures": [], "next_after": None}
    assert user.http.get(path, params={"after": -2}).status_code == 422


@both_databases
def test_one_key_makes_one_generation(plane, user, cluster):
    first, again = submit(user, key="k"), submit(user, key="k")
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    other = submit(user, key="k", seed=6)
    assert (other.status_code, other.json()["problems"][0]["field"]) == (422, "Idempotency-Key")
    assert len(user.http.get("/v1/generations").json()["generations"]) == 1
    user.http.delete(f"/v1/generations/{first.json()['id']}")
    assert submit(user, key="k").status_code == 409


def test_lists_go_from_the_newest_in_pages(plane, user):
    ids = [submit(user).json()["id"] for _ in range(3)]
    page = user.http.get("/v1/generations", params={"limit": 2}).json()
    assert [each["id"] for each in page["generations"]] == [ids[2], ids[1]]
    rest = user.http.get("/v1/generations", params={"after": page["next_after"]}).json()
    assert ([each["id"] for each in rest["generations"]], rest["next_after"]) == ([ids[0]], None)


@pytest.mark.parametrize(
    ("spec", "field", "said"),
    [
        ({"prompts": []}, "prompts", "at least 1"),
        ({"prompts": ["a dog", ""]}, "prompts.1", "at least 1 char"),
        ({"prompts": ["  "]}, "prompts.0", "blank"),
        ({"prompts": ["a\x00dog"]}, "prompts.0", "control characters"),
        ({"prompts": ["x" * 1001]}, "prompts.0", "at most 1000"),
        ({"negative_prompt": "\x00"}, "negative_prompt", "control characters"),
        ({"num_images": 40_000}, "num_images", "120000 pictures"),
        ({"num_images": 0}, "num_images", "greater than or equal to 1"),
        ({"prompts": ["x"] * (limits.MAX_BULK_PICTURES + 1)}, "prompts", "at most 100000"),
        ({"prompts": "a dog"}, "prompts", "valid array"),
        ({"num_inference_steps": 0}, "num_inference_steps", "greater than"),
        ({"width": 8192}, "width", "less than"),
        ({"scheduler": "nonsense"}, "scheduler", "'ddim'"),
        ({"edit": {}}, "edit", "not permitted"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(plane, user, spec, field, said):
    answer = submit(user, **spec)
    assert answer.status_code == 422
    (problem,) = answer.json()["problems"]
    assert problem["field"] == field
    assert said in problem["message"]
    assert user.http.get("/v1/generations").json()["generations"] == []


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"prompts": ["\\ud800"]}', b"\xff"])
def test_what_is_no_request_is_refused(plane, user, body):
    headers = {"Idempotency-Key": "k", "Content-Type": "application/json"}
    answer = user.http.post("/v1/base-models/tiny/generations", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid")


def test_many_long_prompts_are_read_and_too_many_bytes_are_not(plane, user):
    long = "x" * (limits.MAX_PROMPT_CHARS - 6)
    prompts = [f"{number:05d} {long}" for number in range(2_000)]  # 2 MB
    answer = submit(user, prompts=prompts, num_images=50)
    assert (answer.status_code, answer.json()["total"]) == (202, 100_000)
    headers = {"Idempotency-Key": "k", "Content-Length": str(limits.MAX_BULK_BYTES + 1)}
    answer = user.http.post("/v1/base-models/tiny/generations", content=b"", headers=headers)
    assert (answer.status_code, str(limits.MAX_BULK_BYTES) in answer.json()["title"]) == (400, True)
    answer = user.http.post("/v1/jobs/prepare", json={"prompts": prompts})
    assert answer.status_code == 400  # other routes keep their limit


def test_unknown_and_deleted_models_are_not_found(plane, user, model):
    assert submit(user, "base-models/none").status_code == 404
    assert submit(user, "models/model-none").status_code == 404
    user.http.delete(f"/v1/models/{model}")
    assert submit(user, f"models/{model}").status_code == 404


@both_databases
def test_an_attempt_that_died_is_followed_by_another_and_overtaken_by_it(plane, user, cluster, clock):
    old = running(plane, user)
    old.beat(4)
    cluster.jobs[old.ray_job] = RayStatus.FAILED
    Reconciler(plane).round()
    assert old.record["status"] == "queued"
    assert "A drawing process died. Trying again in 5 s." in old.record["status_detail"]
    new = next_attempt(old, cluster, clock)
    assert new.brief().fence == 2
    assert new.beat(4).status_code == 200
    assert {answer.status_code for answer in (old.beat(4), old.failed("internal"), old.call("GET"))} == {409}
    assert (new.record["status"], new.record["attempt"]) == ("running", 2)


def test_what_draws_is_never_given_up_and_what_does_not_is(plane, user, cluster, clock):
    bulk = running(plane, user)
    for step in (0, 1, 2, 3, 4):
        bulk.beat(step)
        bulk.beat(step + 1)
        bulk.failed("worker_died")
        bulk = next_attempt(bulk, cluster, clock)
    for _ in range(plane.settings.max_attempts):
        assert bulk.record["status"] != "failed"
        bulk.beat(5)
        bulk.failed("worker_died")
        bulk = next_attempt(bulk, cluster, clock)
    record = bulk.record
    assert (record["status"], record["error"]["reason"], record["done"]) == ("failed", "worker_died", 5)
    assert record["error"]["message"] == "A drawing process died."


def test_what_another_attempt_would_not_change_is_final(plane, user):
    bulk = running(plane, user)
    bulk.failed("bad_model")
    assert (bulk.record["status"], bulk.record["error"]["detail"]) == ("failed", "what happened")


@both_databases
def test_a_cancelled_generation_ends_and_keeps_its_pictures(plane, user, cluster):
    bulk = running(plane, user)
    bulk.draw(0)
    bulk.beat(4)
    assert user.http.post(f"/v1/generations/{bulk.id}/cancel").json()["cancel_requested"]
    assert bulk.beat(4).json() == {"desired": "cancel"}
    reconciler = Reconciler(plane)
    for _ in range(2):
        reconciler.round()
    assert (bulk.record["status"], bulk.record["done"]) == ("cancelled", 4)
    assert cluster.jobs[bulk.ray_job] is RayStatus.STOPPED
    assert len(user.http.get(f"/v1/generations/{bulk.id}/pictures").json()["pictures"]) == 4
    assert user.http.post(f"/v1/generations/{bulk.id}/cancel").status_code == 409
    block = bulk.plane.store.get(keys.generation_block(keys.generation(user.tenant_id, bulk.id), 0))
    assert bulk.drawn(DrawnBlock.model_validate_json(block)).status_code == 503  # nor is half of them a whole


def test_one_that_was_cancelled_before_its_last_picture_does_not_succeed(plane, user):
    bulk = running(plane, user)
    user.http.post(f"/v1/generations/{bulk.id}/cancel")
    assert bulk.drawn(bulk.draw(0), bulk.draw(4)).status_code == 409


def test_one_that_waits_is_cancelled_at_once(plane, user, cluster):
    first, second = running(plane, user), running(plane, user)
    assert second.record["status_detail"] == "Waiting for 1 job ahead."
    user.http.post(f"/v1/generations/{second.id}/cancel")
    assert second.record["status"] == "cancelled"
    assert list(cluster.jobs) == [first.ray_job]


def test_a_manifest_that_lacks_a_picture_is_refused(plane, user):
    bulk = running(plane, user)
    assert bulk.drawn(bulk.draw(0)).status_code == 503
    assert bulk.record["status"] == "queued"


@both_databases
def test_jobs_and_generations_run_in_the_order_in_which_they_were_made(plane, user, cluster, clock):
    made = []
    for make in (running, running, started, running):
        made.append(make(plane, user))
        clock.advance(1)
    first, second, job, last = made
    assert second.record["status_detail"] == "Waiting for 1 job ahead."
    assert job.job["status_detail"] == "Waiting for 2 jobs ahead."
    assert last.record["status_detail"] == "Waiting for 3 jobs ahead."
    for each, reason in ((first, "bad_model"), (second, "bad_model"), (job, "bad_photos")):
        each.failed(reason)
        cluster.jobs[each.ray_job] = RayStatus.FAILED
        Reconciler(plane).round()
    assert list(cluster.jobs) == [each.ray_job for each in made]


@both_databases
@pytest.mark.parametrize("is_swept", [False, True])
def test_a_deleted_model_ends_its_generations_and_their_pictures_stay(plane, user, cluster, model, is_swept):
    bulk, waits = (running(plane, user, f"models/{model}") for _ in range(2))
    bulk.draw(0)
    bulk.beat(4)
    assert user.http.delete(f"/v1/models/{model}").status_code == 204
    if is_swept:
        sweep(plane)
    reconciler = Reconciler(plane)
    reconciler.round()
    assert waits.record["error"]["reason"] == "model_deleted"
    assert bulk.call("GET").status_code == 409
    for _ in range(2):
        reconciler.round()
    assert cluster.jobs == {bulk.ray_job: RayStatus.STOPPED} | {
        name: state for name, state in cluster.jobs.items() if name.startswith("job-")
    }
    assert (bulk.record["status"], bulk.record["error"]["reason"]) == ("failed", "model_deleted")
    assert len(user.http.get(f"/v1/generations/{bulk.id}/pictures").json()["pictures"]) == 4


@both_databases
def test_a_deleted_generation_leaves_nothing_once_its_ray_job_is_gone(plane, user, cluster):
    bulk = running(plane, user)
    bulk.draw(0)
    bulk.beat(4)
    assert user.http.delete(f"/v1/generations/{bulk.id}").status_code == 204
    assert user.http.get(f"/v1/generations/{bulk.id}").status_code == 404
    assert bulk.beat(4).json() == {"desired": "cancel"}
    prefix = f"{keys.generation(user.tenant_id, bulk.id)}/"
    sweep(plane)
    assert list(plane.store.keys(prefix))  # its actors may be writing still
    reconciler = Reconciler(plane)
    for _ in range(3):
        reconciler.round()
    assert cluster.jobs[bulk.ray_job] is RayStatus.STOPPED
    sweep(plane)
    assert list(plane.store.keys(prefix)) == []
    with plane.database.read() as session:
        assert session.get(Generation, bulk.id) is None
        assert session.get(RunAttempt, (bulk.id, 1)) is None


def test_finished_generations_live_for_a_month(plane, user, clock):
    bulk = running(plane, user)
    bulk.draw(0)
    bulk.failed("bad_model")
    Reconciler(plane).round()
    plane.launcher.jobs.clear()
    Reconciler(plane).round()
    life = timedelta(seconds=plane.settings.generation_life_s)
    clock.moment += life - timedelta(minutes=1)
    sweep(plane)
    assert bulk.record["status"] == "failed"
    clock.moment += timedelta(minutes=2)
    sweep(plane)
    assert user.http.get(f"/v1/generations/{bulk.id}").status_code == 404
    assert list(plane.store.keys(f"{keys.generation(user.tenant_id, bulk.id)}/")) == []


def test_a_submission_that_broke_off_is_invisible_until_it_is_repeated_or_swept(plane, user, cluster, clock):
    bucket = plane.store.bucket
    plane.store.bucket = "a-bucket-that-is-not-there"
    assert submit(user, key="k").status_code == 503
    plane.store.bucket = bucket
    Reconciler(plane).round()
    assert user.http.get("/v1/generations").json()["generations"] == []
    assert cluster.submissions == 0
    assert submit(user, key="k").status_code == 202
    Reconciler(plane).round()
    assert cluster.submissions == 1
    plane.store.bucket = "a-bucket-that-is-not-there"
    assert submit(user, key="l").status_code == 503
    plane.store.bucket = bucket
    clock.advance(3601)
    sweep(plane)
    with plane.database.read() as session:
        assert session.query(Generation).count() == 1


def test_a_driver_needs_its_own_attempts_token(plane, user):
    bulk, job = running(plane, user), started(plane, user)
    stranger = Driver(plane, user.http, job.job_id)
    token = attempt_token(plane.settings.stack_secret, stranger.job_id, 1)
    url = f"/internal/runs/{bulk.id}/1"
    assert user.http.get(url, headers={"Authorization": f"Bearer {token}"}).status_code == 401
