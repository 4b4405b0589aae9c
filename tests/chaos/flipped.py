"""A flipped byte in a stored base file is refused by hash before use, and named."""

from pathlib import Path

import pytest
from own_s3 import own_s3
from stored_base import store_base
from tiny_base import write_tiny_base

from booth_service.errors import StorageError
from booth_service.storage.base_model import materialize


def row(folder: Path) -> str:
    """Every file of a base model in turn."""
    with own_s3(folder / "s3") as server:
        store = server.empty_bucket()
        files = store_base(store, write_tiny_base(folder / "base"))
        for number, file in enumerate(files):
            body = bytearray(store.get(file.key))
            store.put(file.key, bytes([body[0] ^ 1]) + body[1:])
            with pytest.raises(StorageError, match=file.key):
                materialize(store, files, str(folder / f"scratch-{number}"))  # a node that has nothing yet
            store.put(file.key, bytes(body))
    return f"{len(files)} base files refused"
