"""Who may import whom: read from the syntax trees of all sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIENT, SERVICE = ROOT / "sdk" / "booth", ROOT / "service" / "booth_service"

# What each folder of the service may use of the service, beside itself and booth_service.errors.
MAY_IMPORT = {
    "data": set(),
    "diffusion": set(),
    "local": set(),
    "storage": {"booth_service.settings"},
    "control": {
        "booth_service.storage",
        "booth_service.plan",
        "booth_service.data.images",
        "booth_service.settings",
    },
    "training": {
        "booth_service.diffusion",
        "booth_service.data",
        "booth_service.settings",
        "booth_service.storage",
        "booth_service.plan",
        "booth_service.beats",
    },
    "prior": {
        "booth_service.diffusion",
        "booth_service.data.framing",
        "booth_service.storage",
        "booth_service.actor_pool",
    },
    "publish": {"booth_service.diffusion", "booth_service.data.images", "booth_service.storage"},
    "evaluation": {"booth_service.diffusion", "booth_service.data.images", "booth_service.storage"},
    "inference": {
        "booth_service.diffusion",
        "booth_service.data.images",
        "booth_service.storage",
        "booth_service.settings",
    },
}

# Third-party packages that only these files may load.
ONLY_IN = {
    "boto3": {"storage/s3.py"},
    "botocore": {"storage/s3.py"},
    "deepspeed": {"training/zero.py", "publish/export.py"},
}

JOB_CLIENT = {"ray.job_submission", "ray.exceptions"}
HEAVY = {"torch", "transformers", "diffusers", "deepspeed", "accelerate", "ray", "pandas", "pyarrow"}
NO_RAY_NO_S3 = {"ray", "boto3", "botocore", "httpx2", "sqlalchemy", "fastapi"}
LIGHT = {"torch", "ray", "boto3", "botocore", "numpy", "diffusers", "transformers", "sqlalchemy", "fastapi"}


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth; `from a import b` counts as a.b, for b may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_below(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def top(name: str) -> str:
    return name.split(".")[0]


def folder_of(path: Path) -> str | None:
    """The service's folder that a file lies in; None for the files at the top, where folders meet."""
    parts = path.relative_to(SERVICE).parts
    return parts[0] if len(parts) > 1 else None


def of_service(folder: str) -> list[Path]:
    return sources(SERVICE / folder)


def test_the_walk_sees_the_sources() -> None:
    assert CLIENT / "client.py" in sources(CLIENT)
    assert "boto3" in list(map(top, imports(SERVICE / "storage" / "s3.py")))
    folders = {folder_of(path) for path in sources(SERVICE)} - {None}
    assert folders <= set(MAY_IMPORT), "a new folder: say in MAY_IMPORT what it may use"


@pytest.mark.parametrize("path", sources(CLIENT), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_client_is_light_and_alone(path: Path) -> None:
    found = set(map(top, imports(path)))
    assert "booth_service" not in found
    assert not found & LIGHT


def test_the_service_takes_the_contract_alone_from_the_client() -> None:
    found = {
        (str(path.relative_to(SERVICE)), name)
        for path in sources(SERVICE)
        for name in imports(path)
        if top(name) == "booth" and not is_below(name, {"booth.contract"})
    }
    assert not found


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_folders_of_the_service_keep_apart(folder: str) -> None:
    allowed = {"booth_service.errors", f"booth_service.{folder}"} | MAY_IMPORT[folder]
    found = {
        (str(path.relative_to(SERVICE)), name)
        for path in of_service(folder)
        for name in imports(path)
        if top(name) == "booth_service" and not is_below(name, allowed)
    }
    assert not found


@pytest.mark.parametrize("package", sorted(ONLY_IN))
def test_some_packages_have_one_home(package: str) -> None:
    users = {path.relative_to(SERVICE).as_posix() for path in sources(SERVICE) if package in map(top, imports(path))}
    assert users <= ONLY_IN[package]


def test_the_control_plane_loads_nothing_heavy_but_the_job_client() -> None:
    found = {
        (path.name, name)
        for path in of_service("control")
        for name in imports(path)
        if top(name) in HEAVY and not (path.name == "launcher.py" and is_below(name, JOB_CLIENT))
    }
    assert not found


@pytest.mark.parametrize("folder", ["diffusion", "data"])
def test_the_mathematics_runs_in_a_notebook(folder: str) -> None:
    found = {(path.name, name) for path in of_service(folder) for name in imports(path) if top(name) in NO_RAY_NO_S3}
    assert not found


@pytest.mark.parametrize("name", ["metrics.py", "intervals.py"])
def test_the_metrics_are_pure(name: str) -> None:
    found = set(imports(SERVICE / "evaluation" / name))
    assert {each for each in found if top(each) in ("booth", "booth_service")} == {"booth_service.errors.ScoreError"}
    assert not {top(each) for each in found} & (NO_RAY_NO_S3 | {"PIL", "transformers", "pathlib", "os"})


def test_the_environment_is_read_in_two_files() -> None:
    """`local` builds the environments of its children from its own."""
    allowed = {SERVICE / "settings.py", CLIENT / "config.py", *of_service("local")}
    readers = {
        str(path.relative_to(ROOT))
        for path in [*sources(CLIENT), *sources(SERVICE)]
        if path not in allowed and reads_environment(path)
    }
    assert not readers


def reads_environment(path: Path) -> bool:
    return any(
        isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        for node in ast.walk(ast.parse(path.read_text()))
    )
