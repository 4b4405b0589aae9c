"""What the extraction of a LoRA, a process of its own, answers on its stdout."""

from booth.contract.base import Record
from booth.contract.problems import FieldProblem


class Energy(Record):
    """Squared norms of the change that training made to a component: of what the LoRA keeps, and of all of it."""

    kept: float
    total: float


class ExtractionAnswer(Record):
    """The energy by component, or why there is no file."""

    energy: dict[str, Energy] = {}
    problem: FieldProblem | None = None
    error: str = ""
