"""A control plane on a real database and a real object store; only Ray, the clock and Serve are stand-ins."""

import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy
from control_plane import Clock, Cluster, User, a_plane, a_user, put_file

from booth_service.control.database import Database
from booth_service.control.plane import Plane
from booth_service.control.records import EncoderSuite, new_id

POSTGRES = os.environ.get("BOOTH_TEST_POSTGRES_URL")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory) -> Path:
    """A SQLite file with all tables and no row, made once by the real migrations."""
    path = tmp_path_factory.mktemp("migrated") / "booth.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def database_url(request, tmp_path, migrated_sqlite) -> Iterator[str]:
    """An empty database of this test's own: SQLite, or what `both_databases` asks for."""
    if getattr(request, "param", "sqlite") == "sqlite":
        shutil.copy(migrated_sqlite, tmp_path / "booth.db")
        yield f"sqlite:///{tmp_path}/booth.db"
        return
    if POSTGRES is None:
        pytest.skip("set BOOTH_TEST_POSTGRES_URL to the URL of a PostgreSQL where databases may be made")
    name = f"booth_test_{secrets.token_hex(4)}"
    server = sqlalchemy.create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield sqlalchemy.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    with server.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    server.dispose()


@pytest.fixture
def database(database_url) -> Iterator[Database]:
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def plane(database, object_store, cluster, clock) -> Plane:
    """The parts of a control plane, with one base model, "tiny"."""
    return a_plane(database, object_store, cluster, clock)


@pytest.fixture
def user(plane) -> Iterator[User]:
    with a_user(plane) as user:
        yield user


@pytest.fixture
def stranger(plane) -> Iterator[User]:
    """Another tenant of the same service."""
    with a_user(plane) as user:
        yield user


@pytest.fixture
def suite(plane) -> str:
    """A registered suite, "paper", that recipes name; its files are looked at by drivers alone."""
    file = put_file(plane.store, "encoders.json", b"{}")
    row = EncoderSuite(
        id=new_id("suite"),
        name="paper",
        spec={},
        files=[file.model_dump()],
        source="a test",
        created_at=plane.now(),
    )
    with plane.database.write() as session:
        session.add(row)
    return row.id


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
