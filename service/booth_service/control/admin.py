"""The operator's commands: `python -m booth_service.control.admin <command>`, or `boothctl admin <command>`.

They write to the database directly, beside a running control plane or without one.
"""

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from booth_service.control import auth
from booth_service.control.database import Database
from booth_service.control.plane import utc_now
from booth_service.control.records import ApiKey, Tenant, new_id
from booth_service.errors import ServiceError
from booth_service.settings import settings


class Refused(Exception):
    """The command cannot be done; the message says why and what to do."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; its answer goes to stdout, everything else to stderr. 0 where it was done."""
    arguments = _parser().parse_args(argv)
    database = Database(settings().database_url)
    try:
        database.migrate()
        answer = arguments.run(database, arguments)
    except (Refused, ServiceError) as error:
        print(f"boothctl admin: {error}", file=sys.stderr)
        return 1
    finally:
        database.close()
    print(json.dumps(answer) if arguments.json else _text(answer))
    return 0


def add_tenant(database: Database, arguments: argparse.Namespace) -> dict[str, Any]:
    """A tenant of this name exists; where it did already, it is the answer."""
    with database.write() as session:
        tenant = session.scalar(select(Tenant).where(Tenant.name == arguments.name))
        if tenant is None:
            tenant = Tenant(id=new_id("tenant"), name=arguments.name, created_at=utc_now())
            session.add(tenant)
    return {"id": tenant.id, "name": tenant.name}


def list_tenants(database: Database, _arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """All tenants and the public ids of their keys in force."""
    with database.read() as session:
        in_force = session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_(None)).order_by(ApiKey.created_at)).all()
        return [
            {
                "id": tenant.id,
                "name": tenant.name,
                "keys": [key.id for key in in_force if key.tenant_id == tenant.id],
            }
            for tenant in session.scalars(select(Tenant).order_by(Tenant.id))
        ]


def add_key(database: Database, arguments: argparse.Namespace) -> dict[str, Any]:
    """A new API key of the tenant. It is shown this once."""
    with database.write() as session:
        tenant = session.scalar(
            select(Tenant).where((Tenant.name == arguments.tenant) | (Tenant.id == arguments.tenant))
        )
        if tenant is None:
            raise Refused(f"there is no tenant {arguments.tenant!r}; make it with tenant-add")
        public, key = auth.make_key(session, tenant.id, utc_now())
    return {"id": public, "tenant": tenant.name, "key": key}


def revoke_key(database: Database, arguments: argparse.Namespace) -> dict[str, Any]:
    """The key opens nothing any more. Takes its public id, or the whole key."""
    public = arguments.id.split("_")[1] if arguments.id.startswith("booth_") else arguments.id
    with database.write() as session:
        key = session.get(ApiKey, public)
        if key is None:
            raise Refused(f"there is no key {public!r}; tenants lists the public ids")
        key.revoked_at = key.revoked_at or utc_now()
        return {"id": key.id, "revoked_at": key.revoked_at.isoformat()}


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
    return parser


if __name__ == "__main__":
    sys.exit(main())
