"""SQLite and PostgreSQL under the same code: migrations, atomic transactions, no lost updates."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from control_plane import both_databases
from sqlalchemy import inspect, select

from booth_service.control import database as database_module
from booth_service.control.database import Database
from booth_service.control.records import Table, Tenant

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@both_databases
def test_the_migrations_make_the_tables_that_the_code_uses(database):
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


@both_databases
def test_migrating_again_keeps_what_is_there(database):
    with database.write() as session:
        session.add(Tenant(id="t", name="n", created_at=NOW))
    database.migrate()
    with database.read() as session:
        assert session.get_one(Tenant, "t").name == "n"


@both_databases
def test_a_database_of_the_first_version_keeps_its_rows_and_gets_the_new_tables(database):
    config = Config()
    config.set_main_option("script_location", str(Path(database_module.__file__).parent / "migrations"))
    with database.write() as session:
        session.add(Tenant(id="t", name="n", created_at=NOW))
        session.flush()
        config.attributes["connection"] = session.connection()
        command.downgrade(config, "0001")
    added = {"samples", "class_set_leases"}
    assert not added & set(inspect(database.engine).get_table_names())
    database.migrate()
    assert added <= set(inspect(database.engine).get_table_names())
    with database.read() as session:
        assert session.get_one(Tenant, "t").name == "n"


@both_databases
def test_a_transaction_that_raises_leaves_nothing(database):
    with pytest.raises(ZeroDivisionError), database.write() as session:  # noqa: PT012
        session.add(Tenant(id="t", name="n", created_at=NOW))
        session.flush()
        _ = 1 / 0
    with database.read() as session:
        assert session.scalars(select(Tenant)).all() == []


@both_databases
def test_moments_come_back_in_utc(database):
    elsewhere = NOW.astimezone(timezone(timedelta(hours=5)))
    with database.write() as session:
        session.add(Tenant(id="t", name="n", created_at=elsewhere))
    with database.read() as session:
        read = session.get_one(Tenant, "t").created_at
    assert (read, read.utcoffset()) == (NOW, timedelta(0))


@both_databases
def test_writers_beside_each_other_lose_no_update(database):
    with database.write() as session:
        session.add(Tenant(id="t", name="0", created_at=NOW))

    def increment(_: int) -> None:
        with database.write() as session:
            tenant = session.get_one(Tenant, "t", with_for_update=True)
            tenant.name = str(int(tenant.name) + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(80)))
    with database.read() as session:
        assert session.get_one(Tenant, "t").name == "80"


def test_sqlite_forgets_nothing_that_it_has_acknowledged(database):
    names = ("journal_mode", "synchronous", "foreign_keys")
    with database.engine.connect() as connection:
        settings = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]
    assert settings == ["wal", 2, 1]  # 2 is FULL


def test_another_process_sees_what_was_written(database, database_url):
    with database.write() as session:
        session.add(Tenant(id="t", name="n", created_at=NOW))
    second = Database(database_url)
    with second.read() as session:
        assert session.get_one(Tenant, "t").name == "n"
    second.close()
