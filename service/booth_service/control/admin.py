"""The operator's commands: `python -m booth_service.control.admin <command>`, or `boothctl admin <command>`.

They write to database and object store directly, beside a running control plane or without one.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select

from booth.contract.attempts import StoredFile
from booth.contract.models import Recipe
from booth_service.control import auth, base_folder, base_models
from booth_service.control.database import Database
from booth_service.control.plane import utc_now
from booth_service.control.records import ApiKey, Tenant, new_id
from booth_service.errors import ServiceError
from booth_service.settings import settings
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore, file_sha256

RECIPES = Path(__file__).parent.parent / "recipes"
UPLOAD_THREADS = 4


class Refused(Exception):
    """The command cannot be done; the message says why and what to do."""


@dataclass(frozen=True)
class Operator:
    """What the commands act on."""

    database: Database
    store: ObjectStore


def main(argv: list[str] | None = None) -> int:
    """Run one command; its answer goes to stdout, everything else to stderr. 0 where it was done."""
    arguments = _parser().parse_args(argv)
    config = settings()
    operator = Operator(
        Database(config.database_url), ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    )
    try:
        operator.database.migrate()
        answer = arguments.run(operator, arguments)
    except (Refused, ServiceError) as error:
        print(f"boothctl admin: {error}", file=sys.stderr)
        return 1
    finally:
        operator.database.close()
    print(json.dumps(answer) if arguments.json else _text(answer))
    return 0


def add_tenant(operator: Operator, arguments: argparse.Namespace) -> dict[str, Any]:
    """A tenant of this name exists; where it did already, it is the answer."""
    with operator.database.write() as session:
        tenant = session.scalar(select(Tenant).where(Tenant.name == arguments.name))
        if tenant is None:
            tenant = Tenant(id=new_id("tenant"), name=arguments.name, created_at=utc_now())
            session.add(tenant)
    return {"id": tenant.id, "name": tenant.name}


def list_tenants(operator: Operator, _arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All tenants and the public ids of their keys in force."""
    with operator.database.read() as session:
        in_force = session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at)).all()
        return [
            {
                "id": tenant.id,
                "name": tenant.name,
                "keys": [key.id for key in in_force if key.tenant_id == tenant.id],
            }
            for tenant in session.scalars(select(Tenant).order_by(Tenant.id))
        ]


def add_key(operator: Operator, arguments: argparse.Namespace) -> dict[str, Any]:
    """A new API key of the tenant. It is shown this once."""
    with operator.database.write() as session:
        tenant = session.scalar(
            select(Tenant).where((Tenant.name == arguments.tenant) | (Tenant.id == arguments.tenant))
        )
        if tenant is None:
            raise Refused(f"there is no tenant {arguments.tenant!r}; make it with tenant-add")
        public, key = auth.make_key(session, tenant.id, utc_now())
    return {"id": public, "tenant": tenant.name, "key": key}


def revoke_key(operator: Operator, arguments: argparse.Namespace) -> dict[str, Any]:
    """The key opens nothing any more. Takes its public id, or the whole key."""
    public = arguments.id.split("_")[1] if arguments.id.startswith("booth_") else arguments.id
    with operator.database.write() as session:
        key = session.get(ApiKey, public)
        if key is None:
            raise Refused(f"there is no key {public!r}; tenants lists the public ids")
        key.revoked_at = key.revoked_at or utc_now()
        return {"id": key.id, "revoked_at": key.revoked_at.isoformat()}


def list_base_models(operator: Operator, _arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All base models that jobs can start from."""
    with operator.database.read() as session:
        return [
            {
                "name": base.name,
                "family": base.family,
                "is_default": base.is_default,
                "files": len(base.files),
                "bytes": sum(file["bytes"] for file in base.files),
            }
            for base in base_models.current(session)
        ]


def add_base_model(operator: Operator, arguments: argparse.Namespace) -> dict[str, Any]:
    """The base model's files are in the object store and its record names them. Doing it again changes nothing."""
    operator.store.ensure_bucket()
    with tempfile.TemporaryDirectory(prefix="booth-base-model-") as scratch:
        root = _fetch(operator, arguments.source, Path(scratch))
        folder = base_folder.read(root)
        recipe = _recipe(root, arguments.recipe)
        if recipe.family != folder.family:
            raise Refused(f"{root} is a {folder.family} base model, the recipe is for {recipe.family}; name another")
        base_folder.refuse_not_finite(folder)
        with ThreadPoolExecutor(UPLOAD_THREADS) as pool:
            uploads = list(pool.map(lambda path: _store(operator.store, root, path), folder.files))
    files = [file for file, _ in uploads]
    with operator.database.write() as session:
        status = base_models.register(session, arguments.name, recipe, files, default=arguments.default, now=utc_now())
        base = base_models.named(session, arguments.name)
    return {
        "name": base.name,
        "status": status,
        "family": base.family,
        "is_default": base.is_default,
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "uploaded": sum(was_new for _, was_new in uploads),
    }


def _store(store: ObjectStore, root: Path, path: Path) -> tuple[StoredFile, bool]:
    """The file's record, and True where its content was not stored before."""
    digest, size = file_sha256(root / path), (root / path).stat().st_size
    key = keys.base_file(digest)
    is_new = store.size(key) != size
    if is_new:
        store.upload(root / path, key)
    return StoredFile(path=path.as_posix(), key=key, bytes=size, sha256=digest), is_new


def _recipe(root: Path, chosen: str | None) -> Recipe:
    """The recipe asked for by name or file, else the folder's own."""
    built_in = {path.stem: path for path in sorted(RECIPES.glob("*.json"))}
    path = root / base_folder.RECIPE if chosen is None else built_in.get(chosen, Path(chosen))
    if not path.is_file():
        missing = f"{root} has no {base_folder.RECIPE}" if chosen is None else f"there is no recipe {chosen!r}"
        raise Refused(f"{missing}; name one with --recipe: a file, or one of {', '.join(built_in)}")
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise Refused(f"{path} is not a recipe: {error}") from None


def _fetch(operator: Operator, source: str, scratch: Path) -> Path:
    """A local folder with the source's files."""
    if Path(source).is_dir():
        return Path(source)
    if source.startswith("s3://"):
        return _fetch_s3(operator.store, source, scratch)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return _fetch_hub(source)
    raise Refused(f"{source!r} is no folder here, no s3://bucket/prefix and no hub id such as owner/name")


def _fetch_s3(own: ObjectStore, source: str, scratch: Path) -> Path:
    bucket, _, prefix = source.removeprefix("s3://").partition("/")
    prefix = prefix.rstrip("/") + "/" if prefix else ""
    store = own.sibling(bucket)
    for key in store.keys(prefix):
        store.download(key, scratch / key.removeprefix(prefix))
    return scratch


def _fetch_hub(source: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise Refused(f"{source} looks like a hub id; fetching it needs pip install huggingface_hub") from None
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt", "*/*.safetensors"]))
    except Exception as error:
        raise Refused(f"{source} could not be fetched from the hub: {error}") from error


def _text(answer: Any) -> str:
    """One line for each row, its values in columns; a key comes last."""
    rows = answer if isinstance(answer, list) else [answer]
    return "\n".join("  ".join(str(value) for value in row.values()) for row in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="boothctl admin", description=__doc__.split("\n")[0] if __doc__ else None)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON document")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, parents=[shared])
        sub.set_defaults(run=run)
        return sub

    command("tenant-add", add_tenant, "make a tenant").add_argument("name")
    command("tenants", list_tenants, "list tenants and their keys")
    command("key-add", add_key, "make an API key").add_argument("tenant", help="name or id")
    command("key-revoke", revoke_key, "revoke an API key").add_argument("id", help="public id, or the key")
    command("base-models", list_base_models, "list base models")
    add = command("base-model-add", add_base_model, "add or replace a base model")
    add.add_argument("name")
    add.add_argument("source", help="diffusers folder, s3://bucket/prefix, or hub id")
    add.add_argument("--recipe", help="recipe file, or the name of a built-in one")
    add.add_argument("--default", action="store_true", help="jobs that name no base model start from this one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
