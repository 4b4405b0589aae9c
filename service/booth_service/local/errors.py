"""What stops the one-machine stack; each message names the reason and the remedy."""


class StackError(Exception):
    """The stack cannot start or go on."""


class Interrupted(StackError):
    """The operator asked to stop while a part was starting."""

    def __init__(self) -> None:
        super().__init__("Stopped while starting.")
