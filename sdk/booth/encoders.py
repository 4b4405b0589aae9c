"""Suites of encoders: what scores are measured with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from booth.contract.encoders import EncoderSuitePage, EncoderSuiteRecord

if TYPE_CHECKING:
    from booth.transport import Transport


class Encoders:
    """What scores are measured with: `client.encoders`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> list[EncoderSuiteRecord]:
        """All suites of encoders that the service has, by name."""
        return self._transport.get("/v1/encoder-suites", EncoderSuitePage).suites
