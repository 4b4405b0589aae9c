"""Stand-ins for Ray and the clock, a user and a driver, and the smallest base model that is one."""

import hashlib
import io
import json
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import httpx2
import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr
from safetensors.numpy import save
from starlette.testclient import TestClient

from booth.contract.attempts import Manifest, Published, SampleStrip, StoredFile
from booth.contract.jobs import Params
from booth.contract.models import Recipe
from booth_service.control import auth, base_models, web
from booth_service.control.database import Database
from booth_service.control.launcher import DRIVER, ClusterAway, RayJob
from booth_service.control.plane import Plane
from booth_service.control.policy import RayStatus
from booth_service.control.reconciler import Reconciler
from booth_service.control.records import Job, Tenant, new_id
from booth_service.control.tokens import Tokenizers
from booth_service.settings import Settings, attempt_token
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

HOST = "plane.test"
both_databases = pytest.mark.parametrize("database_url", ["sqlite", "postgresql"], indirect=True)

RECIPE = Recipe(
    source="a test",
    steps=10,
    learning_rate=1e-4,
    text_encoder_learning_rate=1e-5,
    num_class_images=4,
    resolution=64,
    train_batch_size=2,
    guidance_scale=4.0,
    num_inference_steps=20,
    class_guidance_scale=1.0,
    class_num_inference_steps=20,
    rare_tokens=["sks", "zwx"],
)


@dataclass
class Clock:
    """A clock that moves when told."""

    moment: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


@dataclass
class Serve:
    """What Serve's REST API shows of the application, in memory: replicas that were told to leave do so when told."""

    is_deployed: bool = False
    capacity: float | None = None
    replicas: list[str] = field(default_factory=list)
    configs: list[dict] = field(default_factory=list)

    def details(self) -> dict:
        replicas = [{"state": state} for state in self.replicas]
        config = {"name": "booth", "import_path": "booth_service.inference.deployment:application"}
        booth = {"deployed_app_config": config, "deployments": {"Painter": {"replicas": replicas}}}
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"port": 8000},
            "applications": {"booth": booth} if self.is_deployed else {},
            "target_capacity": self.capacity,
        }

    def take(self, config: dict) -> None:
        self.configs.append(config)
        self.capacity = config.get("target_capacity")
        self.replicas = ["STOPPING"] * len(self.replicas) if self.capacity == 0 else self.replicas or ["STARTING"]


@dataclass
class Cluster:
    """What the control plane sees of Ray, in memory. `submit` and `stop` do what Ray's Jobs API does."""

    serve: Serve = field(default_factory=Serve)
    jobs: dict[str, RayStatus] = field(default_factory=dict)
    printed: dict[str, str] = field(default_factory=dict)
    programs: dict[str, str] = field(default_factory=dict)
    submissions: int = 0
    is_away: bool = False

    def submit(self, submission_id: str, job_id: str, attempt: int, program: str = DRIVER) -> None:
        self._reach()
        if submission_id not in self.jobs:
            self.submissions += 1
            self.jobs[submission_id] = RayStatus.RUNNING
            self.programs[submission_id] = program

    def status(self, submission_id: str) -> RayJob:
        if self.is_away:
            return RayJob(RayStatus.UNREACHABLE, "connection refused")
        return RayJob(self.jobs.get(submission_id, RayStatus.UNKNOWN))

    def stop(self, submission_id: str) -> None:
        self._reach()
        if not self.jobs[submission_id].is_gone:
            self.jobs[submission_id] = RayStatus.STOPPED

    def refusal(self) -> str | None:
        return "connection refused" if self.is_away else None

    def logs(self, submission_id: str) -> str:
        self._reach()
        if submission_id not in self.jobs:
            raise ClusterAway("status code 404")
        return self.printed.get(submission_id, f"log of {submission_id}\n")

    def serve_details(self) -> dict:
        self._reach()
        return self.serve.details()

    def deploy(self, config: dict) -> None:
        self._reach()
        self.serve.take(config)

    def _reach(self) -> None:
        if self.is_away:
            raise ClusterAway("connection refused")


def a_plane(database: Database, store: ObjectStore, cluster: Cluster, clock: Clock) -> Plane:
    """The parts of a control plane, with one base model, "tiny"."""
    plane = Plane(
        settings=Settings(stack_secret=SecretStr("stack secret"), serve_url="http://serve.test"),
        database=database,
        store=store,
        tokenizers=Tokenizers(store),
        launcher=cluster,
        serve=httpx2.AsyncClient(transport=httpx2.MockTransport(lambda request: httpx2.Response(404))),
        now=clock,
    )
    with database.write() as session:
        base_models.register(session, "tiny", RECIPE, tiny_base(store), default=True, now=clock())
    return plane


@dataclass
class User:
    """A tenant with a key, and how it speaks to the API."""

    tenant_id: str
    http: TestClient

    def put_photos(self, plane: Plane, count: int = 1) -> list[dict]:
        """Upload photos as the client does; returns their references."""
        return [self.put(plane, photo(seed=number), f"{number}.png") for number in range(count)]

    def put(self, plane: Plane, body: bytes, filename: str = "photo", **more) -> dict:
        """Upload one file as the client does; returns its reference."""
        digest = hashlib.sha256(body).hexdigest()
        plane.store.put(keys.upload(self.tenant_id, digest), body)
        return {"sha256": digest, "bytes": len(body), "filename": filename, **more}

    def submit(self, plane: Plane, key: str = "k1", **dials) -> httpx2.Response:
        spec = {"class_noun": "dog", "token": "sks", "images": self.put_photos(plane), **dials}
        return self.http.post("/v1/jobs", json=spec, headers={"Idempotency-Key": key})


class a_user:
    """A new tenant with a key, speaking to the real application over ASGI."""

    def __init__(self, plane: Plane) -> None:
        self.tenant_id = new_id("tenant")
        with plane.database.write() as session:
            session.add(Tenant(id=self.tenant_id, name=self.tenant_id, created_at=plane.now()))
            session.flush()
            _, self.key = auth.make_key(session, self.tenant_id, plane.now())
        self.client = http(plane)

    def __enter__(self) -> User:
        self.client.__enter__()
        self.client.headers["Authorization"] = f"Bearer {self.key}"
        return User(self.tenant_id, self.client)

    def __exit__(self, *error: object) -> None:
        self.client.__exit__(*error)


def http(plane: Plane) -> TestClient:
    """The application round this plane, without a reconciler."""

    @asynccontextmanager
    async def lifespan(app):
        app.state.plane = plane
        yield

    return TestClient(web.build(lifespan), raise_server_exceptions=False)


def photo(seed: int = 0, size: tuple[int, int] = (80, 64)) -> bytes:
    """A PNG that differs by seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def mask(
    size: tuple[int, int] = (80, 64), white: tuple[int, int, int, int] = (30, 20, 50, 40), level: int = 255
) -> bytes:
    """A PNG, black but for a box from left, upper to right, lower."""
    image = Image.new("L", size)
    image.paste(level, white)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def weights(shift: float = 0.0, **replace) -> bytes:
    """A safetensors file of two tensors, moved by `shift`; `replace` sets tensors by name."""
    tensors = {
        "conv.weight": np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30) + np.float32(shift),
        "conv.bias": np.zeros(20, np.float32) + np.float32(shift),
    }
    return save({name: value for name, value in {**tensors, **replace}.items() if value is not None})


def tiny_base(store: ObjectStore) -> list[StoredFile]:
    """A base model of a few hundred bytes."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["a", "photo", "of", "dog", "sks", "zwx"]
    vocabulary, merges = _merged_vocabulary(letters, words)
    files = {
        "model_index.json": b"{}",
        "unet/config.json": json.dumps({"down_block_types": ["DownBlock2D"] * 2}).encode(),
        "unet/diffusion_pytorch_model.safetensors": weights(),
        "vae/config.json": json.dumps({"block_out_channels": [8, 8, 16, 16]}).encode(),
        "vae/diffusion_pytorch_model.safetensors": weights(5),
        "tokenizer/vocab.json": json.dumps(vocabulary).encode(),
        "tokenizer/merges.txt": ("#version: 0.2\n" + "\n".join(merges)).encode(),
        "tokenizer/tokenizer_config.json": b'{"model_max_length": 12}',
    }
    return [put_file(store, path, body) for path, body in sorted(files.items())]


def _merged_vocabulary(letters: list[str], words: list[str]) -> tuple[dict[str, int], list[str]]:
    symbols = letters + [letter + "</w>" for letter in letters]
    merges = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            merges.append(f"{pieces[0]} {pieces[1]}")
            pieces[:2] = [pieces[0] + pieces[1]]
            symbols.append(pieces[0])
    symbols.append("<|endoftext|>")
    return {symbol: number for number, symbol in enumerate(dict.fromkeys(symbols))}, list(dict.fromkeys(merges))


def put_file(store: ObjectStore, path: str, body: bytes) -> StoredFile:
    digest = hashlib.sha256(body).hexdigest()
    store.put(keys.base_file(digest), body)
    return StoredFile(path=path, key=keys.base_file(digest), bytes=len(body), sha256=digest)


class PlaneAndStore(httpx2.BaseTransport):
    """Calls of the control plane reach the application, links the object store."""

    def __init__(self, application: httpx2.BaseTransport) -> None:
        self.application, self.network = application, httpx2.HTTPTransport()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return (self.application if request.url.host == HOST else self.network).handle_request(request)


def started(plane: Plane, user: User, **dials) -> "Driver":
    """A submitted job whose first attempt runs."""
    job = user.submit(plane, key=secrets.token_hex(4), **dials).json()
    Reconciler(plane).round()
    return Driver(plane, user.http, job["id"])


@dataclass
class Driver:
    """What a driver does, over the driver's own API."""

    plane: Plane
    http: TestClient
    job_id: str
    number: int = 1
    fence: int = 1

    def call(self, method: str, path: str = "", **body) -> httpx2.Response:
        token = attempt_token(self.plane.settings.stack_secret, self.job_id, self.number)
        url = f"/internal/attempts/{self.job_id}/{self.number}{path}"
        return self.http.request(method, url, json=body or None, headers={"Authorization": f"Bearer {token}"})

    @property
    def job(self) -> dict:
        """The job as its owner sees it."""
        return self.http.get(f"/v1/jobs/{self.job_id}").json()

    @property
    def ray_job(self) -> str:
        return f"{self.job_id}-a{self.number}"

    def events(self) -> list[dict]:
        return self.http.get(f"/v1/jobs/{self.job_id}/events").json()["events"]

    def beat(self, state: str = "training", step: int = 0, **more) -> httpx2.Response:
        progress = {"phase": more.pop("phase", state), "step": step, "total_steps": 10}
        return self.call("POST", "/beat", fence=self.fence, state=state, progress=progress, **more)

    def samples(self) -> list[dict]:
        """The job's strips as its owner sees them."""
        return self.http.get(f"/v1/jobs/{self.job_id}/samples").json()["steps"]

    def strip(self, step: int, seed: int = 7) -> dict:
        """Store a picture for each sample prompt as the loop does; returns what its beat says of them."""
        with self.plane.database.read() as session:
            job = session.get_one(Job, self.job_id)
        files = []
        for number in range(len(job.params["sample_prompts"])):
            name = f"{number:02d}.png"
            body = photo(seed=10 * seed + number)
            key = keys.sample_file(job.tenant_id, job.id, self.number, step, name)
            self.plane.store.put(key, body, "image/png")
            digest = hashlib.sha256(body).hexdigest()
            files.append(StoredFile(path=keys.sample_path(step, name), key=key, bytes=len(body), sha256=digest))
        return SampleStrip(step=step, files=files, seeds=[seed] * len(files)).model_dump()

    def failed(self, reason: str, detail: str = "") -> httpx2.Response:
        return self.call("POST", "/failed", fence=self.fence, reason=reason, detail=detail)

    def publish(self, body: bytes | None = None, edit=lambda manifest: manifest) -> httpx2.Response:
        """Store a model as the publisher does and report it; `edit` changes the manifest before it is written."""
        return self.call("POST", "/published", **self.store_model(body, edit).model_dump())

    def store_model(self, body: bytes | None = None, edit=lambda manifest: manifest) -> Published:
        store = self.plane.store
        with self.plane.database.read() as session:
            job = session.get_one(Job, self.job_id)
        base = tiny_base(store)
        path = "unet/diffusion_pytorch_model.safetensors"
        key = keys.model_file(job.tenant_id, job.id, self.number, path)
        body = weights(0.01) if body is None else body
        store.put(key, body)
        changed = StoredFile(path=path, key=key, bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
        manifest = Manifest(
            job_id=job.id,
            attempt=self.number,
            fence=self.fence,
            base_model="tiny",
            changed=[changed],
            unchanged=[file for file in base if file.path != path],
            params=Params.model_validate(job.params),
        )
        manifest_key = keys.model_manifest(job.tenant_id, job.id, self.number)
        written = edit(manifest).model_dump_json().encode()
        store.put(manifest_key, written)
        digest = hashlib.sha256(written).hexdigest()
        return Published(fence=self.fence, manifest_key=manifest_key, manifest_sha256=digest)


def next_attempt(plane: Plane, cluster: Cluster, clock: Clock, driver: Driver) -> Driver:
    """The driver of the attempt that follows the one which just ended."""
    cluster.jobs[driver.ray_job] = RayStatus.FAILED
    reconciler = Reconciler(plane)
    reconciler.round()
    clock.advance(60)
    reconciler.round()
    return Driver(plane, driver.http, driver.job_id, driver.number + 1, driver.fence + 1)
