"""The operator's way to add a suite of encoders: python -m booth_service.control.register_encoders NAME SOURCE.

As with base models, what is registered is the files that were read and checked, each by its SHA-256.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from booth_service.control import base_sources, encoder_suites, suite_source
from booth_service.control.base_sources import Source
from booth_service.control.database import Database
from booth_service.control.plane import utc_now
from booth_service.control.register import THREADS, recorded, stored
from booth_service.errors import EncoderError, ServiceError
from booth_service.settings import Settings, settings
from booth_service.storage.s3 import ObjectStore

PARTS = ("subject", "clip", "perceptual")


def main(argv: list[str] | None = None) -> int:
    """Add one suite; the answer goes to stdout, everything else to stderr. 0 where it is there."""
    arguments = _parser().parse_args(argv)
    config = settings()
    database = Database(config.database_url)
    try:
        database.migrate()
        answer = add(arguments, config, database)
    except ServiceError as error:
        print(f"boothctl encoders add: {error}", file=sys.stderr)
        return 1
    finally:
        database.close()
    print(json.dumps(answer) if arguments.json else _line(answer))
    return 0


def add(arguments: argparse.Namespace, config: Settings, database: Database) -> dict[str, Any]:
    """The suite's files are in the object store and its record names them. Doing it again changes nothing."""
    store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    store.ensure_bucket()
    source, origin = _source(arguments, store)
    spec, paths = suite_source.read(source)
    with ThreadPoolExecutor(THREADS) as pool:
        files = list(pool.map(lambda path: recorded(store, path, source.files[path]), paths))
        uploaded = list(pool.map(lambda file: stored(store, file, source.files[file.path]), files))
    with database.write() as session:
        status = encoder_suites.register(session, arguments.name, spec, files, source=origin, now=utc_now())
    return {
        "name": arguments.name,
        "status": status,
        "source": origin or source.name,
        "files": {file.path: file.sha256 for file in files},
        "bytes": sum(file.bytes for file in files),
        "uploaded": sum(uploaded),
    }


def _source(arguments: argparse.Namespace, store: ObjectStore) -> tuple[Source, str]:
    """The suite's files, and where users see them from: a suite as it lies somewhere, or one put together."""
    given = {part: getattr(arguments, part) for part in PARTS if getattr(arguments, part) is not None}
    if arguments.source is not None and not given:
        source = base_sources.source_of(*base_sources.split_revision(arguments.source), store)
        return source, f"{source.name}@{source.revision}" if source.revision else ""
    if arguments.source is None and len(given) == len(PARTS):
        return suite_source.put_together(arguments.name, given, store)
    missing = ", ".join(f"--{part}" for part in PARTS if part not in given)
    told = "a SOURCE and parts" if arguments.source is not None else f"no SOURCE, and no {missing}"
    raise EncoderError(
        f"there is {told}. Give the folder, s3://bucket/prefix or hub id of a whole suite, or all of --subject, --clip "
        "and --perceptual."
    )


def _line(answer: dict[str, Any]) -> str:
    return (
        f"{answer['name']} {answer['status']}: {len(answer['files'])} files, {answer['bytes'] / 2**20:.1f} MiB, "
        f"{answer['uploaded']} uploaded, from {answer['source']}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="boothctl encoders add",
        description="Add or replace a suite of encoders that scores are measured with: a folder with encoders.json, or "
        "one put together of three encoders, with the paper's preprocessing.",
        epilog="The paper's: boothctl encoders add paper --subject facebook/dino-vits16 "
        "--clip openai/clip-vit-base-patch32 --perceptual FOLDER (one with lpips.safetensors)",
    )
    where = "hub id (owner/name or owner/name@revision), folder, or s3://bucket/prefix"
    parser.add_argument("name", help="what recipes and evaluations will call it")
    parser.add_argument("source", nargs="?", help=f"a whole suite, with its encoders.json: {where}")
    parser.add_argument("--subject", help=f"DINO, as transformers saves it: {where}")
    parser.add_argument("--clip", help="CLIP with its tokenizer, as transformers saves them")
    parser.add_argument("--perceptual", help="LPIPS: a folder with lpips.safetensors")
    parser.add_argument("--json", action="store_true", help="print one JSON document, every file's SHA-256 in it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
