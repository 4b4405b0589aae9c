"""The control plane by itself, beside a Ray cluster that is there already: python -m booth_service.

Everything but host and port comes from the environment, as settings.py lists it.
"""

import argparse
import contextlib
import signal
import sys

import uvicorn

from booth_service.app import create_app
from booth_service.preflight import BadSetting, check_bucket, check_database, read_settings, warnings

GRACE_S = 10


def main(arguments: list[str] | None = None) -> int:
    """Answers until SIGTERM or Ctrl-C: 0. Where it cannot start, one line on stderr says why: 1."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # uvicorn sends itself again what has stopped it
    try:
        settings = read_settings()
        check_database(settings.database_url)
        check_bucket(settings)
    except BadSetting as error:
        print(f"booth_service: {error}", file=sys.stderr)
        return 1
    for warning in warnings(settings):
        print(f"booth_service: warning: {warning}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        create_app(settings),
        host=asked.host,
        port=asked.port,
        access_log=False,
        log_config=None,  # create_app has chosen the format
        log_level="info",
        timeout_graceful_shutdown=GRACE_S,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m booth_service", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="where it listens (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7878, help="on which port (7878)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
