"""FastStream's Kafka broker, built from our settings."""

import ssl

from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512

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
