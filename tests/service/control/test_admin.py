"""The operator's commands against a real database."""

import json

import pytest

from booth_service import settings as settings_module
from booth_service.control import admin, auth
from booth_service.control.database import Database


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command with --json; returns its exit code, its answer and what it complained."""
    url = f"sqlite:///{tmp_path}/admin.db"
    monkeypatch.setenv("BOOTH_DATABASE_URL", url)
    settings_module.settings.cache_clear()

    def run(*arguments: str):
        code = admin.main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    run.url = url
    yield run
    settings_module.settings.cache_clear()


def test_a_tenants_key_works_until_it_is_revoked(run):
    assert run("tenant-add", "acme")[1]["name"] == "acme"
    code, made, _ = run("key-add", "acme")
    assert code == 0
    database = Database(run.url)
    with database.read() as session:
        tenant_id = auth.find_tenant(session, made["key"])
    assert run("tenants")[1] == [{"id": tenant_id, "name": "acme", "keys": [made["id"]]}]
    run("key-revoke", made["id"])
    with database.read() as session:
        assert auth.find_tenant(session, made["key"]) is None
    assert run("tenants")[1][0]["keys"] == []
    database.close()


def test_a_tenant_added_twice_is_one(run):
    assert run("tenant-add", "acme")[1] == run("tenant-add", "acme")[1]


@pytest.mark.parametrize("arguments", [("key-add", "nobody"), ("key-revoke", "nothing")])
def test_what_is_not_there_is_named(run, arguments):
    code, answer, complaint = run(*arguments)
    assert (code, answer) == (1, None)
    assert arguments[1] in complaint


def test_the_key_stands_last_where_people_read(run, capsys):
    run("tenant-add", "acme")
    admin.main(["key-add", "acme"])
    assert capsys.readouterr().out.split()[-1].startswith("booth_")
