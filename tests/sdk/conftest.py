"""What every client test starts from: no configuration of this machine, and a scripted service where asked for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scripted_service import ScriptedService, scripted_service


@pytest.fixture(autouse=True)
def clean_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BOOTH_BASE_URL", "BOOTH_API_KEY", "BOOTH_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BOOTH_DATA_DIR", str(tmp_path / "no-stack"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    with scripted_service() as running:
        yield running


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "rex.png"
    Image.linear_gradient("L").convert("RGB").resize((64, 48)).save(path)
    return path
