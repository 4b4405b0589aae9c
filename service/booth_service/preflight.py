"""What must be right before the control plane starts by itself, and what is worth a warning.

Settings, database and bucket must be right; the Ray cluster and Serve may come later.
"""

import ipaddress
from collections.abc import Iterator

import httpx2
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from booth_service.app import only_one
from booth_service.control.database import Database
from booth_service.control.launcher import LOOK_TIMEOUT_S, Launcher
from booth_service.errors import ObjectMissing, StorageError
from booth_service.settings import Settings
from booth_service.storage.s3 import ObjectStore

URL_SETTINGS = ("api_url", "ray_dashboard_url", "serve_url", "s3_endpoint_url")
DATABASES = ("sqlite", "postgresql")
_DATABASE_URLS = "sqlite:////folder/booth.db or postgresql+psycopg://user:password@host/name"


class BadSetting(Exception):
    """The control plane cannot start: one line that names the setting, the reason and the remedy."""


def read_settings() -> Settings:
    """The settings of this process, each checked by itself. Raises BadSetting for the first that is wrong."""
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = "BOOTH_" + "_".join(map(str, first["loc"])).upper()
        raise BadSetting(f"{name} is {first['input']!r}: {first['msg']}. Correct it, or leave it out.") from None
    if not settings.stack_secret.get_secret_value():
        raise BadSetting("BOOTH_STACK_SECRET is empty. Set it to a long random text, the same on every Ray node.")
    for name in URL_SETTINGS:
        value = getattr(settings, name)
        if value is not None and not _is_http(value):
            raise BadSetting(f"BOOTH_{name.upper()} is {value!r}, no address. Write it as http://host:port.")
    return settings


def check_database(url: str) -> None:
    """The database can be used, has the newest tables, and no other control plane is on the same SQLite file.

    Raises BadSetting; no message holds the URL's password.
    """
    try:
        backend = make_url(url).get_backend_name()
        if backend not in DATABASES:
            raise ArgumentError(f"{backend} is not one of {', '.join(DATABASES)}")
        database = Database(url)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise BadSetting(f"BOOTH_DATABASE_URL is no URL for Booth: {_line(error)}. Write {_DATABASE_URLS}.") from None
    where = database.engine.url.render_as_string(hide_password=True)
    try:
        database.look()
        with only_one(url):
            database.migrate()
    except DBAPIError as error:
        raise BadSetting(
            f"BOOTH_DATABASE_URL: {where} cannot be used: {_line(error.orig)}. Start it, or correct the URL."
        ) from None
    except CommandError as error:
        raise BadSetting(
            f"BOOTH_DATABASE_URL: {where} has tables of another version: {_line(error)}. Run the newer Booth on it."
        ) from None
    except RuntimeError as error:
        raise BadSetting(f"BOOTH_DATABASE_URL: {error}") from None
    finally:
        database.close()


def check_bucket(settings: Settings) -> None:
    """The bucket is there, made where it was missing. Raises BadSetting."""
    where = settings.s3_endpoint_url or f"AWS S3, {settings.s3_region}"
    try:
        store = ObjectStore(settings.s3_bucket, settings.s3_endpoint_url, settings.s3_region)
        try:
            store.look()
        except ObjectMissing:
            store.ensure_bucket()
    except (StorageError, ValueError) as error:
        raise BadSetting(
            f"BOOTH_S3_BUCKET {settings.s3_bucket!r} at {where} cannot be used: {_line(error)}. Check "
            "BOOTH_S3_BUCKET, BOOTH_S3_ENDPOINT_URL, BOOTH_S3_REGION and boto3's credentials (AWS_*, or a role)."
        ) from None


def warnings(settings: Settings) -> Iterator[str]:
    """What will go wrong later, or may: a cluster that is not there yet, one that strangers may use."""
    dashboard = settings.ray_dashboard_url
    if (refusal := Launcher(dashboard).refusal()) is not None:
        yield (
            f"Ray at {dashboard} takes no jobs now, and they wait: {refusal} "
            "BOOTH_RAY_DASHBOARD_URL says where it is, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN what it asks for."
        )
    if _answers_strangers(dashboard):
        yield (
            f"Ray at {dashboard} answers without a token: whoever reaches it can run any program there. Start it "
            "with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN."
        )
    if not _is_loopback(dashboard):
        for name in ("api_url", "s3_endpoint_url"):
            if _is_loopback(getattr(settings, name) or ""):
                yield f"BOOTH_{name.upper()} is {getattr(settings, name)}, which drivers on other hosts cannot reach."


def _answers_strangers(dashboard: str) -> bool:
    try:
        answer = httpx2.get(f"{dashboard.rstrip('/')}/api/version", timeout=LOOK_TIMEOUT_S, trust_env=False)
    except httpx2.HTTPError:
        return False
    return answer.status_code == 200


def _is_http(address: str) -> bool:
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


def _is_loopback(address: str) -> bool:
    host = httpx2.URL(address).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _line(error: BaseException | None) -> str:
    """The first line of an error's words, without the full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
