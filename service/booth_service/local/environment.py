"""The environments of the stack's parts: the operator's own, with our settings over it."""

import os
import sys
from pathlib import Path

from booth_service.local import leftovers, object_store
from booth_service.local.data_dir import DataDir, State

S3_BUCKET = "booth"
S3_REGION = "us-east-1"
_REPLACED = ("AWS_", "RAY_", "S3_", "WEED_", "PYTHONHOME", "PYTHONPATH")


def base(directory: DataDir) -> dict[str, str]:
    """What every part gets. `python` is this installation's; the operator's S3 and Ray variables do not reach in."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_REPLACED)}
    return kept | {
        leftovers.MARK: str(directory.path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def service(directory: DataDir, state: State) -> dict[str, str]:
    """What drivers, replicas and the control plane share: settings of the service, S3 credentials, Ray's token."""
    return base(directory) | {
        "BOOTH_SERVING_YIELDS": shared_device(),
        "BOOTH_S3_BUCKET": S3_BUCKET,
        "BOOTH_S3_REGION": S3_REGION,
        "BOOTH_S3_ENDPOINT_URL": object_store.endpoint_url(state.s3_ports),
        "BOOTH_API_URL": api_url(state),
        "BOOTH_SERVE_URL": serve_url(state),
        "BOOTH_RAY_DASHBOARD_URL": ray_dashboard_url(state),
        "BOOTH_STACK_SECRET": state.stack_secret,
        "AWS_ACCESS_KEY_ID": state.s3_access_key,
        "AWS_SECRET_ACCESS_KEY": state.s3_secret_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": state.ray_token,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def control(directory: DataDir, state: State) -> dict[str, str]:
    """The control plane's: it alone opens the database."""
    return service(directory, state) | {"BOOTH_DATABASE_URL": directory.database_url}


def cluster(directory: DataDir, state: State) -> dict[str, str]:
    """The Ray node's, inherited by drivers, ranks and replicas.

    Without a GPU each process computes with one thread: as many ranks as cores would fight otherwise. Models are loaded
    here, from files at hand alone.
    """
    threads = {} if _has_gpu() else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    no_foreign_code = {"DIFFUSERS_DISABLE_REMOTE_CODE": "1", "HF_HUB_OFFLINE": "1"}
    return (
        service(directory, state) | threads | no_foreign_code | {"BOOTH_SCRATCH_DIR": str(directory.path / "scratch")}
    )


def api_url(state: State) -> str:
    """Where clients and drivers reach the control plane."""
    return f"http://127.0.0.1:{state.api_port}"


def serve_url(state: State) -> str:
    """Where the control plane reaches the Serve application."""
    return f"http://127.0.0.1:{state.service_ports['serve']}"


def ray_dashboard_url(state: State) -> str:
    """Where Ray's Jobs and Serve APIs answer."""
    return f"http://127.0.0.1:{state.ray_ports['dashboard']}"


def serving_timeout_s() -> float:
    """What a call for pictures may take: the operator's choice, or the default of the service's settings."""
    return float(os.environ.get("BOOTH_SERVING_TIMEOUT_S") or 600)


def shared_device() -> str:
    """The Ray resource that inference and jobs take turns at: the operator's choice, or this machine's GPU where
    inference has none of its own."""
    chosen = os.environ.get("BOOTH_SERVING_YIELDS")
    if chosen is not None:
        return chosen
    return "GPU" if _has_gpu() and not float(os.environ.get("BOOTH_SERVING_GPUS") or 0) else ""


def _has_gpu() -> bool:
    return Path("/proc/driver/nvidia/gpus").exists()
