"""The first pictures of a set, whole: found, or the blocks that are missing or damaged made."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from booth_service.prior.block_maker import BlockTask, SetWork
from booth_service.prior.blocks import Place, damaged_files, read_blocks, read_manifest, store_manifest
from booth_service.prior.class_set import ClassBlock, ClassManifest

Make = Callable[[SetWork, Sequence[BlockTask]], Iterable[ClassBlock]]
"""Makes blocks in any order; `generate.by_actor_pool` on a cluster."""


@dataclass(frozen=True)
class ClassImages:
    """A complete set: how many of its pictures were there and how many were made, and what the owner should know."""

    manifest: ClassManifest
    reused: int
    made: int = 0
    warnings: list[str] = field(default_factory=list)


def find_class_images(place: Place, count: int, *, with_pictures: bool) -> ClassImages | None:
    """The set's first `count` pictures where its manifest and all that is read of it are whole; else None."""
    manifest = read_manifest(place, count)
    if manifest is None or damaged_files(place.store, manifest.blocks, with_pictures=with_pictures):
        return None
    return ClassImages(manifest, reused=count)


def ensure_class_images(
    work: SetWork, count: int, make: Make, *, with_pictures: bool, on_made: Callable[[int, int], None]
) -> ClassImages:
    """The first `count` pictures of the set, making only blocks that are not there or are damaged.

    `on_made(done, total)` is called after each block, with pictures counted. Raises StorageError or what drawing
    raised; what was stored until then is reused by the next call. The caller holds the set's lease.
    """
    place, spec = work.place, work.spec
    firsts = range(0, count, spec.block_size)
    known = read_blocks(place, firsts)
    standing = [block for block in known.values() if block is not None]
    damaged = damaged_files(place.store, standing, with_pictures=with_pictures)
    tasks = [BlockTask(first, replace=first in damaged) for first in firsts if known[first] is None or first in damaged]
    wanted = {task.first: sum(index < count for index in spec.block(task.first)) for task in tasks}
    blocks = {first: block for first, block in known.items() if block is not None}
    done = 0
    for block in make(work, tasks) if tasks else ():
        blocks[block.first] = block
        done += wanted[block.first]
        on_made(done, sum(wanted.values()))
    manifest = ClassManifest(address=spec.address, count=count, blocks=[blocks[first] for first in firsts])
    store_manifest(place, manifest)
    warnings = [_repaired(known[first], blocks[first], files) for first, files in sorted(damaged.items())]
    return ClassImages(manifest, reused=count - done, made=done, warnings=warnings)


def _repaired(before: ClassBlock | None, after: ClassBlock, files: list[str]) -> str:
    said = f"{after.name} were damaged in the object store and made again: {', '.join(files)}"
    if before != after:
        said += "; other hardware or other libraries than the first time drew slightly other pictures"
    return said
