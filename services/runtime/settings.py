"""Settings that every service has. Environment variables `TURNLOG_*`, or the same names in a file `.env`."""

from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.errors import ConfigurationError


class RuntimeSettings(BaseSettings):
    """Where things are, and how this process speaks of itself."""

    model_config = SettingsConfigDict(env_prefix="TURNLOG_", env_file=".env", frozen=True, extra="ignore")

    data_dir: Path = Field(default=Path(".turnlog"), description="folder under which everything local lives")
    http_host: str = Field(default="127.0.0.1", description="address that HTTP servers listen on")
    http_port: int = Field(
        default=8080,
        ge=0,
        le=65535,
        description="gateway and console; memory is on the next port, usage on the one after",
    )
    kafka_bootstrap: str | None = Field(
        default=None, description="host:port[,host:port] of Kafka; unset: the local launcher's"
    )
    local_kafka_port: int = Field(default=9092, ge=1, le=65535, description="port of the local launcher's Kafka")
    local_kafka_nodes: int = Field(
        default=1, ge=1, le=5, description="nodes of the local launcher's Kafka, on ports in a row"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="how to speak to Kafka"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="SCRAM-SHA-512", description="SASL mechanism, where the protocol has SASL"
    )
    kafka_username: str | None = Field(default=None, description="SASL user")
    kafka_password: SecretStr | None = Field(default=None, description="SASL password")
    kafka_ca_file: Path | None = Field(default=None, description="certificate authority for TLS, PEM")
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]{0,100}$", description="put before every topic name")
    topic_partitions: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="partitions of the topics that are created; unset: 4 locally, else 12",
    )
    topic_replication: int | None = Field(
        default=None,
        ge=1,
        le=9,
        description="replicas of the topics that are created; unset: one a node locally, else 3",
    )
    memory_url: str | None = Field(default=None, description="base URL of memory; unset: next to the gateway, port + 1")
    usage_url: str | None = Field(default=None, description="base URL of usage; unset: next to the gateway, port + 2")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    log_format: Literal["console", "json"] = Field(default="console", description="how log lines look")
    otlp_endpoint: str | None = Field(default=None, description="OTLP/HTTP endpoint for traces; unset: no traces leave")

    @property
    def local(self) -> bool:
        """Whether Kafka is the local launcher's."""
        return self.kafka_bootstrap is None

    @property
    def bootstrap(self) -> str:
        ports = range(self.local_kafka_port, self.local_kafka_port + self.local_kafka_nodes)
        return self.kafka_bootstrap or ",".join(f"127.0.0.1:{port}" for port in ports)

    @property
    def partitions(self) -> int:
        return self.topic_partitions or (4 if self.local else 12)

    @property
    def replication(self) -> int:
        return self.topic_replication or (self.local_kafka_nodes if self.local else 3)

    @property
    def memory_port(self) -> int:
        return self.http_port and self.http_port + 1

    @property
    def usage_port(self) -> int:
        return self.http_port and self.http_port + 2

    @property
    def memory_base_url(self) -> str:
        return (self.memory_url or f"http://127.0.0.1:{self.memory_port}").rstrip("/")

    @property
    def usage_base_url(self) -> str:
        return (self.usage_url or f"http://127.0.0.1:{self.usage_port}").rstrip("/")

    def topic(self, name: str) -> str:
        """The name of a topic on the broker."""
        return f"{self.topic_prefix}{name}"


Settings = TypeVar("Settings", bound=RuntimeSettings)


def load_settings(kind: type[Settings], /, **overrides: object) -> Settings:
    """Settings from the environment and `.env`; `overrides` win.

    Raises:
        ConfigurationError: at least one setting is wrong; the message names them all.
    """
    try:
        return kind(**overrides)  # pyright: ignore[reportArgumentType]
    except ValidationError as error:
        problems = "; ".join(
            f"TURNLOG_{'_'.join(str(step) for step in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise ConfigurationError(f"settings: {problems}") from error


def is_http_url(text: str) -> bool:
    """Whether a client can ask there: most say of a wrong address no more than that nobody answers."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
