"""The operator's way to add a base model: python -m booth_service.control.register NAME SOURCE --recipe RECIPE.

It writes to database and object store directly, beside a running control plane or without one. What is registered is
the files that were read and checked, each by its SHA-256; jobs can name nothing else.
"""

import argparse
import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from booth.contract.attempts import StoredFile
from booth.contract.jobs import ExportDtype
from booth.contract.models import Recipe
from booth_service.control import allow_list, base_adapters, base_folder, base_models, base_references
from booth_service.control.base_sources import Source, SourceFile, source_of
from booth_service.control.database import Database
from booth_service.control.plane import utc_now
from booth_service.control.safetensors_header import scan
from booth_service.control.views import stored_files
from booth_service.errors import BadWeights, BaseModelError, ServiceError
from booth_service.settings import Settings, settings
from booth_service.storage import keys
from booth_service.storage.s3 import ObjectStore

RECIPES = Path(__file__).parent.parent / "recipes"
THREADS = 4


def main(argv: list[str] | None = None) -> int:
    """Add one base model; the answer goes to stdout, everything else to stderr. 0 where it is there."""
    arguments = _parser().parse_args(argv)
    config = settings()
    database = Database(config.database_url)
    try:
        database.migrate()
        answer = add(arguments, config, database)
    except ServiceError as error:
        print(f"boothctl base-models add: {error}", file=sys.stderr)
        return 1
    finally:
        database.close()
    print(json.dumps(answer) if arguments.json else _line(answer))
    return 0


def add(arguments: argparse.Namespace, config: Settings, database: Database) -> dict[str, Any]:
    """The base model's files are in the object store and its record names them. Doing it again changes nothing."""
    store = ObjectStore(config.s3_bucket, config.s3_endpoint_url, config.s3_region)
    store.ensure_bucket()
    source, entries = _source(config, store, arguments.source, arguments.revision)
    folder = base_folder.read(source)
    recipe = _recipe(source, arguments.recipe)
    if recipe.family != folder.family:
        raise BaseModelError(f"{source.name} is a {folder.family} base model, the recipe is for {recipe.family}")
    with ThreadPoolExecutor(THREADS) as pool:
        files, uploaded = _stored(store, {path: source.files[path] for path in folder.files}, entries, pool)
        adapter = _stored_adapter(arguments, config, store, files, pool)
        references = _references(store, source, files, recipe.export_dtype, config, database, pool)
    with database.write() as session:
        status = base_models.register(
            session,
            arguments.name,
            recipe,
            files,
            {recipe.export_dtype: references} if references else {},
            adapter,
            default=arguments.default,
            now=utc_now(),
            source=source.name,
            revision=source.revision,
        )
        base = base_models.named(session, arguments.name)
        adapter = stored_files(base.adapter_files)
    return {
        "name": base.name,
        "status": status,
        "family": base.family,
        "is_default": base.is_default,
        "source": base.source,
        "revision": base.revision,
        "files": {file.path: file.sha256 for file in files},
        "bytes": sum(file.bytes for file in files),
        "reference_bytes": sum(file.bytes for file in references),
        "uploaded": uploaded,
        "ip_adapter": {file.path: file.sha256 for file in adapter},
    }


def recorded(store: ObjectStore, path: str, file: SourceFile) -> StoredFile:
    """The file's record. Weights whose hash the source knows and that are stored already are not read again.

    Raises BaseModelError, naming the file, where a weight is not finite or the bytes are not those that the source
    says.
    """
    if file.sha256 is not None and store.size(keys.base_file(file.sha256)) == file.total_bytes:
        return StoredFile(path=path, key=keys.base_file(file.sha256), bytes=file.total_bytes, sha256=file.sha256)
    try:
        if path.endswith(".safetensors"):
            digest, not_finite = scan(file.read, path, file.total_bytes)
        else:
            digest, not_finite = hashlib.sha256(file.whole()).hexdigest(), None
    except BadWeights as error:
        raise BaseModelError(f"{error.detail}. Fetch the folder again.") from None
    if not_finite is not None:
        raise BaseModelError(f"{path} has values that are not finite in {not_finite}. Fetch the folder again.")
    if file.sha256 not in (None, digest):
        raise BaseModelError(f"{path} has SHA-256 {digest}, and its source says {file.sha256}. Fetch it again.")
    return StoredFile(path=path, key=keys.base_file(digest), bytes=file.total_bytes, sha256=digest)


def _source(
    config: Settings, store: ObjectStore, name: str, revision: str | None
) -> tuple[Source, list[allow_list.Allowed]]:
    """The source, and the allow-list's entries for it, if there is a list. Raises BaseModelError where it is not on
    it."""
    allowed = None if config.base_model_allow_list is None else allow_list.read(config.base_model_allow_list)
    source = source_of(name, revision, store)
    return source, [] if allowed is None else allowed.of(name, source.revision)


def _stored(
    store: ObjectStore, chosen: dict[str, SourceFile], entries: list[allow_list.Allowed], pool: ThreadPoolExecutor
) -> tuple[list[StoredFile], int]:
    """The files' records, all of them in the object store, and how many were not before."""
    files = list(pool.map(lambda path: recorded(store, path, chosen[path]), chosen))
    if entries:
        allow_list.refuse_other_files(entries, files)
    return files, sum(pool.map(lambda file: stored(store, file, chosen[file.path]), files))


def _stored_adapter(
    arguments: argparse.Namespace,
    config: Settings,
    store: ObjectStore,
    base: list[StoredFile],
    pool: ThreadPoolExecutor,
) -> list[StoredFile] | None:
    """The records of the IP-Adapter that is given for these files of a base model; None where none is.

    Raises BaseModelError where the two do not go together.
    """
    if arguments.ip_adapter is None:
        return None
    source, entries = _source(config, store, arguments.ip_adapter, arguments.ip_adapter_revision)
    chosen = base_adapters.chosen(source, arguments.ip_adapter_weights, arguments.ip_adapter_encoder)
    files, _ = _stored(store, chosen, entries, pool)
    base_adapters.refuse_unfit(store, files, base)
    return files


def stored(store: ObjectStore, file: StoredFile, source: SourceFile) -> bool:
    """The content is in the object store. True where it was not before."""
    is_new = store.size(file.key) != file.bytes
    if is_new:
        source.put(file.key)
    return is_new


def _references(
    store: ObjectStore,
    source: Source,
    files: list[StoredFile],
    dtype: ExportDtype,
    config: Settings,
    database: Database,
    pool: ThreadPoolExecutor,
) -> list[StoredFile]:
    """What models of the base are stored as differences to; of files that were added before they are known."""
    if not config.delta_store:
        return []
    with database.read() as session:
        known = base_models.known_references(session, dtype)

    def one(file: StoredFile) -> StoredFile | None:
        if file.sha256 in known:
            return known[file.sha256].model_copy(update={"path": file.path})
        return base_references.stored_reference(store, file, source.files[file.path], dtype)

    trained = [file for file in files if base_references.is_trained(file.path)]
    return [reference for reference in pool.map(one, trained) if reference is not None]


def _recipe(source: Source, chosen: str | None) -> Recipe:
    """The recipe asked for by name or file, else the source's own."""
    built_in = {path.stem: path for path in sorted(RECIPES.glob("*.json"))}
    there = built_in.get(chosen or "", Path(chosen or ""))
    if chosen is None and base_folder.RECIPE in source.files:
        where, body = base_folder.RECIPE, source.files[base_folder.RECIPE].whole()
    elif chosen is not None and there.is_file():
        where, body = str(there), there.read_bytes()
    else:
        missing = f"{source.name} has no {base_folder.RECIPE}" if chosen is None else f"there is no recipe {chosen!r}"
        raise BaseModelError(f"{missing}; name one with --recipe: a file, or one of {', '.join(built_in)}")
    try:
        return Recipe.model_validate_json(body)
    except ValidationError as error:
        raise BaseModelError(f"{where} is not a recipe: {error}") from None


def _line(answer: dict[str, Any]) -> str:
    commit = f" at {answer['revision']}" if answer["revision"] else ""
    return (
        f"{answer['name']} {answer['status']}: {answer['family']}, {len(answer['files'])} files, "
        f"{answer['bytes'] / 2**30:.2f} GiB, {answer['uploaded']} uploaded, from {answer['source']}{commit}"
        + (" (default)" if answer["is_default"] else "")
        + (f", with an IP-Adapter of {len(answer['ip_adapter'])} files" if answer["ip_adapter"] else "")
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="boothctl base-models add", description="Add or replace a base model.")
    parser.add_argument("name", help="what jobs will call it")
    parser.add_argument("source", help="diffusers folder, s3://bucket/prefix, or hub id such as owner/name")
    parser.add_argument("--recipe", help="recipe file, or the name of a built-in one")
    parser.add_argument("--default", action="store_true", help="jobs that name no base model start from this one")
    parser.add_argument("--revision", help="of a hub id: branch, tag or commit; the commit is kept")
    parser.add_argument("--ip-adapter", metavar="SOURCE", help="its IP-Adapter, for --method ip_adapter; as SOURCE is")
    parser.add_argument("--ip-adapter-weights", metavar="PATH", help="the weight file in there, where it has several")
    parser.add_argument("--ip-adapter-encoder", metavar="PATH", help="the image encoder's folder in there")
    parser.add_argument("--ip-adapter-revision", metavar="REVISION", help="as --revision, of the IP-Adapter's hub id")
    parser.add_argument("--json", action="store_true", help="print one JSON document, every file's SHA-256 in it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
