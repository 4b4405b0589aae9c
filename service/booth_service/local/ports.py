"""Ports on loopback, chosen once per data directory and kept while they are free."""

import random
import socket
from collections.abc import Iterable

RANGE = range(20000, 32000)
"""Below the kernel's ephemeral ports and above 10002-19999, which `ray start` keeps for its workers."""


def is_free(port: int) -> bool:
    """True where a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def hold(port: int) -> socket.socket | None:
    """A socket that listens on this port of 127.0.0.1, so that no one else can; None where someone else does."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
    except OSError:
        listener.close()
        return None
    return listener


def choose(names: Iterable[str], kept: dict[str, int], taken: Iterable[int] = ()) -> dict[str, int]:
    """A free port for every name, none of them in `taken`: the kept ones if all are free, else new ones for all."""
    names, taken = list(names), set(taken)
    if set(kept) == set(names) and all(port not in taken and is_free(port) for port in kept.values()):
        return dict(kept)
    candidates = (port for port in random.sample(RANGE, len(RANGE)) if port not in taken and is_free(port))
    return {name: next(candidates) for name in names}
