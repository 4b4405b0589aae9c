"""The composition root: what it refuses, and that it starts and stops everything."""

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from booth_service.app import create_app, only_one
from booth_service.settings import Settings


@pytest.fixture
def settings(tmp_path, object_store, unused_port) -> Settings:
    return Settings(
        database_url=f"sqlite:///{tmp_path}/booth.db",
        s3_bucket=object_store.bucket,
        s3_endpoint_url=object_store.client.meta.endpoint_url,
        ray_dashboard_url=f"http://127.0.0.1:{unused_port}",
        stack_secret=SecretStr("secret"),
        reconcile_interval_s=0.05,
    )


def test_without_a_stack_secret_nothing_starts(settings):
    with pytest.raises(ValueError, match="BOOTH_STACK_SECRET"):
        create_app(settings.model_copy(update={"stack_secret": SecretStr("")}))


def test_it_starts_answers_and_starts_again(settings):
    for _ in range(2):
        with TestClient(create_app(settings)) as client:
            assert client.get("/v1/health").json()["status"] == "ok"
            assert client.get("/v1/jobs").status_code == 401


def test_a_second_control_plane_on_the_same_file_is_refused(settings):
    with TestClient(create_app(settings, reconcile=False)):
        second = TestClient(create_app(settings, reconcile=False))
        with pytest.raises(RuntimeError, match="Another control plane"):
            second.__enter__()


def test_other_databases_are_not_in_the_way(tmp_path):
    with only_one(f"sqlite:///{tmp_path}/a.db"), only_one(f"sqlite:///{tmp_path}/b.db"):
        pass
    with only_one("postgresql+psycopg://x/y"), only_one("postgresql+psycopg://x/y"):
        pass
