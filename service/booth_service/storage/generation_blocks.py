"""Pictures of a generation in the object store: in blocks, whose records are put last and found without listing."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import ValidationError

from booth.contract.bulk import DrawnBlock
from booth_service.errors import ObjectMissing
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

THREADS = 8


def firsts(block_size: int, start: int, stop: int) -> range:
    """The first pictures of all blocks that have any of the pictures `start` to `stop` - 1."""
    return range(start - start % block_size, stop, block_size)


def read_blocks(store: ObjectStore, prefix: str, asked: Sequence[int]) -> dict[int, DrawnBlock]:
    """The records that stand of the blocks that begin with these pictures."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda first: _read(store, keys.generation_block(prefix, first)), asked)
        return {first: block for first, block in zip(asked, found, strict=True) if block is not None}


def damaged_blocks(
    store: ObjectStore, blocks: Iterable[DrawnBlock], on_checked: Callable[[int], None]
) -> dict[int, list[str]]:
    """Keys that are missing or hold other bytes than recorded, by their block's first picture; whole ones are left out.

    Every byte is read. `on_checked` hears of so many more pictures.
    """

    def look(block: DrawnBlock) -> list[str]:
        return [each.key for each in block.pictures if not _is_whole(store, each.key, each.sha256)]

    damaged: dict[int, list[str]] = {}
    in_order = list(blocks)
    with ThreadPoolExecutor(THREADS) as pool:
        for block, lost in zip(in_order, pool.map(look, in_order), strict=True):
            if lost:
                damaged[block.first] = lost
            on_checked(len(block.pictures))
    return damaged


def store_block(store: ObjectStore, prefix: str, block: DrawnBlock, *, replace: bool) -> DrawnBlock:
    """The block exists. Returns the record that stands: that of another process, where it came first.

    `replace` puts the record in place of a damaged block's.
    """
    key, body = keys.generation_block(prefix, block.first), block.model_dump_json().encode()
    if not replace and store.put_once(key, body):
        return block
    standing = None if replace else _read(store, key)
    if standing is None:
        store.put(key, body, "application/json")
    return standing or block


def _read(store: ObjectStore, key: str) -> DrawnBlock | None:
    try:
        return DrawnBlock.model_validate_json(store.get(key))
    except (ObjectMissing, ValidationError):
        return None


def _is_whole(store: ObjectStore, key: str, sha256: str) -> bool:
    try:
        return hashlib.sha256(store.get(key)).hexdigest() == sha256
    except ObjectMissing:
        return False
