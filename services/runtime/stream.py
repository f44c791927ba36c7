"""FastStream's Kafka broker, built from our settings, and what its subscribers must not do with records."""

import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

from services.runtime.kafka import Record
from services.runtime.settings import RuntimeSettings

_SASL = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}


def build_broker(settings: RuntimeSettings, *, client_id: str) -> KafkaBroker:
    """A broker that creates no topics and whose producer is idempotent."""
    return KafkaBroker(
        settings.bootstrap.split(","),  # FastStream takes one text for one address
        client_id=client_id,
        security=_security(settings),
        enable_idempotence=True,
        allow_auto_create_topics=False,
        logger=None,
    )


def _security(settings: RuntimeSettings) -> BaseSecurity | None:
    protocol = settings.kafka_security_protocol
    if protocol == "PLAINTEXT":
        return None
    cafile = str(settings.kafka_ca_file) if settings.kafka_ca_file else None
    context = ssl.create_default_context(cafile=cafile) if "SSL" in protocol else None
    if "SASL" not in protocol:
        return BaseSecurity(ssl_context=context, use_ssl=True)
    password = settings.kafka_password.get_secret_value() if settings.kafka_password else ""
    return _SASL[settings.kafka_sasl_mechanism](
        username=settings.kafka_username or "", password=password, ssl_context=context, use_ssl=context is not None
    )


async def parse_bare(message: Any, parse: Callable[[Any], Awaitable[Any]]) -> Any:
    """A subscriber's `parser`: headers are left to the handler, which has the records themselves.

    FastStream takes them for text, and a header that is none would end the subscriber; and it would answer to whatever
    topic a header `reply_to` names.
    """
    if isinstance(message, tuple):
        batch = cast("tuple[Record, ...]", message)
        parsed = await parse((replace(batch[0], headers=()), replace(batch[-1], headers=())))
    else:
        parsed = await parse(replace(message, headers=()))
    parsed.raw_message = message
    return parsed


async def undecoded(message: Any) -> None:
    """A subscriber's `decoder`: records are decoded one by one by the handler, so that a bad one spoils no batch."""
