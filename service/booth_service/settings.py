"""Every environment variable of the service, read once. All names begin with BOOTH_."""

import hashlib
import hmac
import os
from functools import cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """The operator's settings. S3 credentials come from boto3's default chain (AWS_ACCESS_KEY_ID, roles ...)."""

    model_config = SettingsConfigDict(env_prefix="BOOTH_", extra="ignore", frozen=True)

    database_url: str = "sqlite:///booth.db"
    """SQLAlchemy URL; postgresql+psycopg://user@host/name in production."""
    s3_bucket: str = "booth"
    s3_endpoint_url: str | None = None
    """None means AWS S3."""
    s3_region: str = "us-east-1"
    api_url: str = "http://127.0.0.1:7878"
    """Where drivers on the cluster reach the control plane."""
    ray_dashboard_url: str = "http://127.0.0.1:8265"
    """Where Ray's Jobs API answers. Its token is Ray's own: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN or
    RAY_AUTH_TOKEN_PATH."""
    serve_url: str = "http://127.0.0.1:8000"
    """Where Serve's proxy answers; the secret that the application asks for is `stack_secret`."""
    stack_secret: SecretStr = SecretStr("")
    """Shared by control plane, drivers and Serve; attempt tokens are derived from it. Empty refuses to start."""
    serving_gpus: float = 0.0
    """GPUs that inference may hold; plans count the rest."""
    max_ranks: int = 0
    """Most training processes of one job; 0 means as many as the rows of a step and the devices allow."""
    min_zero_stage: int = Field(default=1, ge=1, le=3)
    """The lowest ZeRO stage of a job on several ranks. Plans take a higher one by themselves where GPUs' memory asks
    for it; the memory of CPU hosts is not looked at."""
    first_step_limit_s: float = 420.0
    """An attempt whose first optimizer step has not come by then fails: its devices were never free."""
    no_progress_limit_s: float = 300.0
    """An attempt that has not moved for so long, in any phase, is stopped and tried again."""
    max_attempts: int = 3
    """A job fails for good at its own so many failures."""
    max_cluster_losses: int = 20
    """And with its so many lost clusters: a restart of the stack, clean or not, is one."""
    max_running_jobs: int = 1
    """Jobs on the cluster at a time; the others wait in order, and say so (inside Ray a second gang waits silently)."""
    share_class_images: bool = False
    """Class images that a base model drew are shared by all tenants (they hold no one's photos), not by each one's jobs
    alone. A user's own class images never are."""
    reconcile_interval_s: float = 1.0
    upload_link_s: int = 900
    download_link_s: int = 900
    model_cache_bytes: int = 4 * 2**30
    """Host memory for models in a serving replica."""
    device_cache_bytes: int = 0
    """Memory of its GPU that a replica gives to models beside the one it draws with."""
    serving_yields: str = ""
    """The Ray resource that replicas and jobs share, "GPU" on a one-GPU host: each replica takes one, and all leave
    before a job is admitted. Empty means that they share nothing."""
    serving_replicas: int = Field(default=1, ge=1)
    """The most replicas of the Serve application; it scales between one (none while it yields) and this."""
    serving_batch_size: int = Field(default=4, ge=1, le=64)
    """The most rows that are sampled together, of pictures of `serving_batch_pixels` / this or fewer pixels each."""
    serving_batch_pixels: int = Field(default=4 * 1024 * 1024, ge=64 * 64)
    """The most pixels of one batch; a picture of more is drawn alone."""
    serving_fixed_batch: bool = False
    """Every batch is padded to its largest size, so that a picture's bits never depend on how many share its batch."""
    serving_age_limit_s: float = Field(default=10.0, gt=0)
    """A picture that has waited so long is drawn next, whatever it costs in switches of models."""
    serving_queue_pictures: int = Field(default=256, ge=1)
    """The most pictures that wait in a replica; more are answered 429."""
    serving_timeout_s: float = Field(default=600.0, gt=0)
    """A call for pictures fails after that, wherever it is."""
    serving_calls: int = Field(default=256, ge=1)
    """The most calls for pictures that are under way in the control plane; more are answered 429."""
    serving_stuck_limit_s: float = Field(default=180.0, gt=0)
    """A replica whose device has not finished a denoising step for so long is replaced."""
    serving_drain_s: float = Field(default=120.0, gt=0)
    """How long a replica that has to leave may take to finish the pictures under way."""
    serving_warm_s: float = Field(default=60.0, ge=0)
    """How long a job that has published its model waits at most until a replica holds it in memory; 0 skips that."""
    bad_model_memory_s: float = 30.0
    """How long a replica remembers that a model cannot be loaded."""
    picture_life_s: float = 24 * 3600.0
    """Generated pictures that are stored for links are deleted after that, those of one day (UTC) together."""
    generation_life_s: float = 30 * 24 * 3600.0
    """The pictures of a generation are deleted so long after its end."""
    scratch_dir: str | None = None
    """Where base models are kept on cluster nodes; None means a folder in the system's temporary directory."""
    base_cache_bytes: int = 64 * 2**30
    """Disk that base models may take on this node; those in use stay in any case."""
    delta_store: bool = True
    """Models are stored as lossless differences to their base model where that at least halves their bytes. Adding a
    base model then stores its half-precision files too, which are what they are differences to."""
    base_model_allow_list: Path | None = None
    """A YAML or JSON file of what may be added as a base model (control/allow_list.py); None means anything."""


@cache
def settings() -> Settings:
    """The process's settings."""
    return Settings()


def driver_environment(settings: Settings) -> dict[str, str]:
    """What the control plane tells its drivers, so that the nodes of a cluster need not know it: nothing secret.

    The nodes themselves carry BOOTH_STACK_SECRET and the credentials of the object store.
    """
    told = {
        "BOOTH_API_URL": settings.api_url,
        "BOOTH_S3_BUCKET": settings.s3_bucket,
        "BOOTH_S3_ENDPOINT_URL": settings.s3_endpoint_url,
        "BOOTH_S3_REGION": settings.s3_region,
    }
    return {name: value for name, value in told.items() if value is not None}


def attempt_token(stack_secret: SecretStr, job_id: str, attempt: int) -> str:
    """The bearer token of one attempt's driver: derived, so that no secret is written into a Ray job."""
    message = f"attempt:{job_id}:{attempt}".encode()
    return hmac.new(stack_secret.get_secret_value().encode(), message, hashlib.sha256).hexdigest()


def forget_ray_addresses() -> None:
    """Ray's client goes where it is told: these variables would silently win over the address it is given."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.pop("RAY_API_SERVER_ADDRESS", None)


def torchrun_place() -> tuple[int, int, int]:
    """Rank, number of ranks and rank on this host, as torchrun says them; (0, 1, 0) with a rendezvous of its own
    without it."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    for name, alone in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        os.environ.setdefault(name, alone)
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
