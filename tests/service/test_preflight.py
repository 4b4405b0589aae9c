"""What keeps the control plane from starting is said in one line: the setting, the reason, the remedy."""

import os
import secrets
import subprocess
import sys

import boto3
import pytest
from pydantic import SecretStr

from booth_service import bulk, driver, preflight
from booth_service.app import only_one
from booth_service.attempt import EXIT_FAILED
from booth_service.control.database import Database
from booth_service.preflight import BadSetting
from booth_service.settings import Settings, driver_environment, settings


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Nothing of Booth but the secret."""
    for name in [name for name in os.environ if name.startswith("BOOTH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BOOTH_STACK_SECRET", "the secret")


def test_good_settings_are_read_as_they_are(monkeypatch):
    monkeypatch.setenv("BOOTH_SERVE_URL", "http://booth-head-svc:8000")
    assert preflight.read_settings() == Settings()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("STACK_SECRET", "", "BOOTH_STACK_SECRET is empty. Set it to a long random text"),
        ("MAX_RANKS", "many", "BOOTH_MAX_RANKS is 'many': Input should be a valid integer"),
        ("MIN_ZERO_STAGE", "7", "BOOTH_MIN_ZERO_STAGE is '7': Input should be less than or equal to 3"),
        ("SERVE_URL", "ray-head:8000", "BOOTH_SERVE_URL is 'ray-head:8000', no address. Write it as http://host:port"),
        ("RAY_DASHBOARD_URL", "ray://head:10001", "BOOTH_RAY_DASHBOARD_URL is 'ray://head:10001', no address"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(monkeypatch, name, value, reason):
    monkeypatch.setenv(f"BOOTH_{name}", value)
    with pytest.raises(BadSetting) as found:
        preflight.read_settings()
    assert str(found.value).startswith(reason)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("just words", "no URL for Booth: Could not parse"),
        ("mysql://root:pass-word@db/booth", "no URL for Booth: mysql is not one of sqlite, postgresql"),
        ("postgresql+unknown://root:pass-word@db/booth", "no URL for Booth: Can't load plugin"),
        ("sqlite:////nowhere/booth.db", "sqlite:////nowhere/booth.db cannot be used: unable to open database file"),
        ("postgresql+psycopg://root:pass-word@127.0.0.1:1/booth", "127.0.0.1:1/booth cannot be used: connection"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(url, reason):
    with pytest.raises(BadSetting) as found:
        preflight.check_database(url)
    assert str(found.value).startswith("BOOTH_DATABASE_URL")
    assert reason in str(found.value)
    assert "pass-word" not in str(found.value)
    assert "\n" not in str(found.value)


def test_a_database_of_a_newer_version_is_left_alone(tmp_path):
    url = f"sqlite:///{tmp_path}/booth.db"
    preflight.check_database(url)
    database = Database(url)
    with database.write() as session:
        session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    with pytest.raises(BadSetting, match=r"has tables of another version.*9999"):
        preflight.check_database(url)


def test_a_file_that_another_control_plane_holds_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path}/booth.db"
    with only_one(url), pytest.raises(BadSetting, match="Another control plane runs on"):
        preflight.check_database(url)
    preflight.check_database(url)


def test_a_missing_bucket_is_made_and_a_refusing_store_is_named(s3_server, monkeypatch):
    chosen = Settings(s3_bucket=f"made-{secrets.token_hex(4)}", s3_endpoint_url=s3_server.endpoint_url)
    preflight.check_bucket(chosen)
    preflight.check_bucket(chosen)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it keeps the credentials that it found first
    with pytest.raises(BadSetting, match=r"BOOTH_S3_BUCKET 'made-.*cannot be used.*403.*AWS_\*") as found:
        preflight.check_bucket(chosen)
    assert "\n" not in str(found.value)


def test_a_store_that_is_not_there_is_named_at_once(s3_server):
    with pytest.raises(BadSetting, match=r"http://127\.0\.0\.1:1 cannot be used: .*Could not connect"):
        preflight.check_bucket(Settings(s3_endpoint_url="http://127.0.0.1:1"))


def test_a_cluster_that_is_away_is_worth_a_warning_and_no_more():
    away = Settings(ray_dashboard_url="http://127.0.0.1:1")
    (warning,) = preflight.warnings(away)
    assert warning.startswith("Ray at http://127.0.0.1:1 takes no jobs now, and they wait: Failed to connect")
    far = Settings(ray_dashboard_url="http://ray-head.invalid:8265", s3_endpoint_url="http://localhost:8333")
    (_, api, store) = preflight.warnings(far)
    assert api == "BOOTH_API_URL is http://127.0.0.1:7878, which drivers on other hosts cannot reach."
    assert store.startswith("BOOTH_S3_ENDPOINT_URL is http://localhost:8333")


def test_drivers_are_told_addresses_and_nothing_secret():
    told = Settings(stack_secret=SecretStr("the secret"), api_url="http://booth:7878", s3_bucket="pictures")
    assert driver_environment(told) == {
        "BOOTH_API_URL": "http://booth:7878",
        "BOOTH_S3_BUCKET": "pictures",
        "BOOTH_S3_REGION": "us-east-1",
    }


def test_the_program_says_one_line_and_ends(tmp_path):
    environment = {**os.environ, "BOOTH_DATABASE_URL": f"sqlite:///{tmp_path}/none/booth.db"}
    command = [sys.executable, "-m", "booth_service"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("booth_service: BOOTH_DATABASE_URL: sqlite:////")
    assert line.endswith("correct the URL.")


@pytest.mark.parametrize("program", [driver, bulk])
def test_a_driver_on_a_node_without_the_secret_says_so(program, monkeypatch, capsys):
    monkeypatch.setenv("BOOTH_STACK_SECRET", "")
    settings.cache_clear()
    try:
        assert program.main("job", 1) == EXIT_FAILED
    finally:
        settings.cache_clear()
    assert capsys.readouterr().out.startswith("BOOTH_STACK_SECRET is not set on this Ray node")
