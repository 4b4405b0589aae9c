"""API keys: `booth_<public id>_<secret>`. Only the SHA-256 of the secret is stored."""

import hashlib
import hmac
import secrets
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from booth_service.control.plane import Plane
from booth_service.control.problems import ProblemError
from booth_service.control.records import ApiKey
from booth_service.settings import attempt_token

_NO_SUCH_KEY = hashlib.sha256(b"").hexdigest()


def plane_of(request: Request) -> Plane:
    """The control plane that this application serves."""
    plane: Plane = request.app.state.plane
    return plane


def tenant_of(request: Request, plane: Annotated[Plane, Depends(plane_of)]) -> str:
    """The tenant whose key the request carries; unauthenticated without a good one."""
    with plane.database.read() as session:
        tenant_id = find_tenant(session, _bearer(request))
    if tenant_id is None:
        raise ProblemError(
            "unauthenticated",
            "The API key is missing, wrong or revoked.",
            remedy="Check BOOTH_API_KEY (on the wire: Authorization: Bearer <key>); "
            "the operator makes keys with boothctl admin key-add.",
        )
    return tenant_id


def check_attempt(request: Request, job_id: str, number: int, plane: Annotated[Plane, Depends(plane_of)]) -> None:
    """The request comes from this attempt's driver; unauthenticated otherwise."""
    token = attempt_token(plane.settings.stack_secret, job_id, number)
    if not hmac.compare_digest(_bearer(request).encode(), token.encode()):
        raise ProblemError("unauthenticated", "The attempt's token is missing or wrong.")


def make_key(session: Session, tenant_id: str, now: datetime) -> tuple[str, str]:
    """A new key's public id, and the whole key, which is never shown again."""
    public, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    session.add(ApiKey(id=public, tenant_id=tenant_id, secret_sha256=_sha256(secret), created_at=now))
    return public, f"booth_{public}_{secret}"


def find_tenant(session: Session, key: str) -> str | None:
    """The tenant of a key that is not revoked. An unknown id takes as long as a wrong secret."""
    prefix, _, rest = key.partition("_")
    public, _, secret = rest.partition("_")
    row = session.get(ApiKey, public) if prefix == "booth" and public.isalnum() else None
    stored = _NO_SUCH_KEY if row is None else row.secret_sha256
    matches = hmac.compare_digest(_sha256(secret), stored)
    return row.tenant_id if row is not None and matches and row.revoked_at is None else None


def _bearer(request: Request) -> str:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() == "bearer" else ""


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


Caller = Annotated[str, Depends(tenant_of)]
Here = Annotated[Plane, Depends(plane_of)]
