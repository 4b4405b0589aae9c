"""The image: its base, what goes into it, and whom it runs as. It cannot be built here."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "docker" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(word, rest) of every instruction, continued lines joined, comments left out."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, rest in (line.split(" ", 1) for line in joined.splitlines())]


def those_of(word: str) -> list[str]:
    return [rest for found, rest in instructions() if found == word]


def test_its_base_is_rays_own_with_the_projects_ray_and_a_python_that_it_takes() -> None:
    (base,) = those_of("FROM")
    found = re.fullmatch(r"rayproject/ray:(\S+)-py3(\d\d)\$\{DEVICE\}", base)
    assert found is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(
        each.startswith("ray[") and each.endswith(f"=={found[1]}")
        for each in project["optional-dependencies"]["service"]
    )
    assert project["requires-python"] == ">=3.11,<3.13"
    assert int(found[2]) in (11, 12)
    assert instructions()[0] == ("ARG", "DEVICE="), "empty for CPUs, -gpu for GPUs"


def test_it_installs_the_service_with_the_versions_that_the_tests_ran_with() -> None:
    installs = [run for run in those_of("RUN") if "pip install" in run]
    assert all("-c constraints.txt" in run or "--no-deps" in run for run in installs)
    assert any('".[service]"' in run for run in installs)
    assert ("COPY", "constraints.txt ./") in instructions()


def test_it_runs_as_somebody_who_is_not_root() -> None:
    users = those_of("USER")
    assert users
    assert all(user.isdigit() and int(user) > 0 for user in users), "a number: Kubernetes cannot look names up"
    words = [word for word, _ in instructions()]
    assert words.index("USER") < words.index("RUN")


def test_nothing_reaches_the_builder_but_what_it_copies() -> None:
    assert not those_of("ADD")
    copied = {name for rest in those_of("COPY") for name in rest.split()[:-1]}
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    names = [name for word, rest in instructions() if word in ("ARG", "ENV") for name in re.findall(r"(\w+)=", rest)]
    assert not [name for name in names if re.search("SECRET|TOKEN|PASSWORD|KEY", name)]
