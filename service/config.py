"""The flags of `convoy serve`, checked at start. How one model is served is in `policy.py`."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.policy import Provider


class ServerConfig(BaseModel):
    """The flags of `convoy serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: Path
    host: str = "127.0.0.1"
    grpc_port: int = Field(default=8001, ge=0, le=65535)
    http_port: int = Field(default=8002, ge=0, le=65535)
    provider: Provider = "auto"
    workers: int = Field(default=1, ge=1, le=256)
    worker_start_seconds: float = Field(default=600.0, gt=0, le=1e6)
    policies: Path | None = None
    ready_file: Path | None = None
    max_message_bytes: int | None = Field(default=None, ge=2**20, le=2**31 - 1)
    lame_duck_seconds: float = Field(default=1.0, ge=0, le=3600)
    drain_seconds: float = Field(default=30.0, ge=0, le=3600)
    transport: Literal["auto", "fast", "public"] = "auto"
    compression: Literal["none", "deflate", "gzip"] = "none"
    max_concurrent_streams: int = Field(default=1024, ge=1, le=2**31 - 1)
    max_connection_age_seconds: float = Field(default=0.0, ge=0, le=1e6)
    max_connection_age_grace_seconds: float = Field(default=30.0, ge=0, le=1e6)
    keepalive_seconds: float = Field(default=0.0, ge=0, le=1e6)
    min_ping_interval_seconds: float = Field(default=10.0, ge=0, le=1e6)
    channelz: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    page: bool = True
    rest: bool = True
    control: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    access_log_sample: float = Field(default=0.0, ge=0, le=1)
    otlp_endpoint: str | None = None
    trace_sample: float = Field(default=1.0, ge=0, le=1)

    @property
    def url_host(self) -> str:
        """The host as it stands before a colon and a port."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def rest_offered(self) -> bool:
        """Whether requests are taken over HTTP, which asks nobody for a certificate."""
        return self.rest and self.tls_client_ca is None

    @property
    def page_offered(self) -> bool:
        """Whether there is a page, which asks by HTTP too."""
        return self.page and self.rest_offered
