"""What an operator lets in as a base model: sources, their commits, and the SHA-256 of their files."""

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from booth.contract.attempts import StoredFile
from booth_service.errors import BaseModelError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Allowed(_Strict):
    """A source. Without `revision` any commit of it, without `files` (path -> SHA-256) any content."""

    source: str
    revision: str | None = None
    files: dict[str, str] | None = None


class AllowList(_Strict):
    """All that may be added."""

    base_models: list[Allowed]

    def of(self, source: str, revision: str | None) -> list[Allowed]:
        """The entries for this source at this commit. Raises BaseModelError where there is none."""
        same_source = [each for each in self.base_models if each.source == source]
        found = [each for each in same_source if each.revision in (None, revision)]
        if not same_source:
            raise BaseModelError(f"{source} is not on the list of BOOTH_BASE_MODEL_ALLOW_LIST. Add it there first.")
        if not found:
            listed = ", ".join(str(each.revision) for each in same_source)
            raise BaseModelError(
                f"{source} is at {revision}, and the allow-list has {listed}. Name that one with --revision."
            )
        return found


def read(path: Path) -> AllowList:
    """The list in a YAML or JSON file. Raises BaseModelError where there is none."""
    try:
        return AllowList.model_validate(yaml.safe_load(path.read_text()))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise BaseModelError(f"The allow-list {path} cannot be used, so nothing may be added: {error}") from error


def refuse_other_files(allowed: list[Allowed], files: list[StoredFile]) -> None:
    """Raise BaseModelError, naming a file, unless an entry has exactly these files, or any."""
    taken = {file.path: file.sha256 for file in files}
    if any(each.files is None or each.files == taken for each in allowed):
        return
    listed = allowed[0].files or {}
    odd = sorted(path for path in taken.keys() | listed.keys() if taken.get(path) != listed.get(path))
    raise BaseModelError(
        f"{allowed[0].source}: {odd[0]} has SHA-256 {taken.get(odd[0])}, and the allow-list has {listed.get(odd[0])}. "
        "Give the files that it names, or change it."
    )
