"""The settings of `convoy serve`. Its options, their environment variables and CONFIGURATION.md are made from these fields.

How one model is served is in policy.py.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.model.providers import Provider

MAX_MESSAGE_BYTES = 2**31 - 1
"""gRPC's limits are 32-bit signed integers."""

MAX_WORKERS = 256


FOREIGN_SHARED_MEMORY = ("triton_python_backend_shm_region_", "sem.", "psm_", "torch_")
"""How the names of shared memory objects begin that are never a client's: of Triton's Python backend, of named semaphores, of
Python's multiprocessing and of PyTorch."""


class ServerConfig(BaseModel):
    """The settings of `convoy serve`. A field that is True by default is a flag `--no-<field>`, which its description describes.

    `json_schema_extra` holds how a field is shown where that does not follow from its type: `default`, `metavar`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    HEADINGS: ClassVar[dict[str, str]] = {
        "host": "Listening",
        "auth": "Access",
        "provider": "Models",
        "workers": "Processes",
        "transport": "gRPC",
        "lame_duck_seconds": "Shutdown",
        "log_level": "Logs and traces",
    }
    """The headings in the help text, each by the first field under it."""

    repository: Path = Field(description="Folder of the models: REPOSITORY/<model>/<version>/model.onnx.")

    host: tuple[str, ...] = Field(
        default=("127.0.0.1",),
        min_length=1,
        description="Addresses that both ports listen on: IPv4, IPv6 or names, each with all of its addresses. 0.0.0.0 and :: "
        "both stand for every address of the machine, IPv4 and IPv6.",
        json_schema_extra={"metavar": "ADDRESS"},
    )
    grpc_port: int = Field(default=8001, ge=0, le=65535, description="Port for gRPC; 0 takes a free one.")
    http_port: int = Field(
        default=8002,
        ge=0,
        le=65535,
        description="Port for /metrics, /livez, /readyz, REST and the web page; 0 takes a free one.",
    )
    admin_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Port of its own for /metrics, /livez and /readyz, always plain HTTP and open to whoever reaches it; 0 takes a "
        "free one. The HTTP port then has no /metrics.",
    )
    grpc_socket: Path | None = Field(
        default=None,
        description="Unix socket for gRPC, beside the port and with the same TLS. Not with several workers.",
    )
    http_socket: Path | None = Field(default=None, description="Unix socket for all that the HTTP port serves, beside the port.")
    http_idle_seconds: float = Field(
        default=75.0,
        ge=1,
        le=1e6,
        description="Close an HTTP connection on which nothing has been sent for this time. Longer than a load balancer keeps its "
        "own (mostly 60 s, Google Cloud's 600 s), or it may send a request on a connection that is just being closed.",
    )
    http_request_seconds: float = Field(
        default=30.0,
        ge=1,
        le=1e6,
        description="How long an HTTP request may take to arrive, header and body; then it is answered 408.",
    )
    root_path: str = Field(
        default="",
        description="Path, such as /convoy, under which a proxy offers the HTTP port. Requests are taken with it and without it.",
        json_schema_extra={"metavar": "PATH"},
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(),
        description="Addresses and networks (10.0.0.0/8) of proxies whose X-Forwarded-For, -Proto, -Host and -Prefix are taken for "
        "true; unix for whoever connects to --http-socket.",
        json_schema_extra={"metavar": "ADDRESS"},
    )
    allowed_hosts: tuple[str, ...] = Field(
        default=(),
        description="Names by which HTTP requests may ask for this server (Host), against DNS rebinding: convoy.example.com, "
        "*.example.com for those under one, * for all. IP addresses, localhost, this machine's name and those of --host always "
        "may. Checked in every request if set, or if the server listens on loopback alone; else in what web pages send over "
        "plain HTTP.",
        json_schema_extra={"metavar": "NAME"},
    )
    allowed_origins: tuple[str, ...] = Field(
        default=(),
        description="Origins, such as https://cats.example, whose web pages may send requests over HTTP and read answers (CORS); "
        "* for all. This server's own page always may.",
        json_schema_extra={"metavar": "ORIGIN"},
    )
    ready_file: Path | None = Field(
        default=None,
        description="File to write when the server is ready: JSON with the ports and the pid. Removed at exit.",
    )
    page: bool = Field(default=True, description="Do not serve the web page at / of the HTTP port.")
    rest: bool = Field(default=True, description="Serve only /metrics, /livez and /readyz over HTTP: no REST, no web page.")
    ignore_unknown_parameters: bool = Field(
        default=False,
        description="Ignore parameters of an Open Inference request that are not known, as Triton does, rather than refuse the "
        "request. content_type and headers are always ignored.",
    )
    tls_cert: Path | None = Field(
        default=None,
        description="Server certificate (PEM); turns TLS on for gRPC and HTTP. Reloaded when the file changes.",
    )
    tls_key: Path | None = Field(default=None, description="Private key of the certificate (PEM).")
    tls_client_ca: Path | None = Field(
        default=None,
        description="CA (PEM) that client certificates must come from: mutual TLS. Over HTTP all but /livez and /readyz needs one; "
        "with --admin-port every connection to the HTTP port does.",
    )

    auth: Path | None = Field(
        default=None,
        description="File (TOML) that says who may do what: tokens, certificates and the rights of their groups. Without it, "
        "whoever reaches a port may use it. Read again when it changes.",
    )
    insecure: bool = Field(
        default=False,
        description="Take tokens over connections of other machines that are not encrypted: where a proxy or a mesh encrypts them.",
    )

    provider: Provider = Field(
        default="auto",
        description="ONNX Runtime execution provider; auto takes CUDA where it works, else the CPU.",
    )
    load_seconds: float = Field(
        default=120.0,
        gt=0,
        le=1e6,
        description="How long it may take to load a version. It is loaded in a process of its own first, and given up there if it "
        "takes longer.",
    )
    load_memory: int | None = Field(
        default=None,
        ge=2**26,
        le=2**50,
        description="How many bytes of memory it may take to load a version, beside those of Python and ONNX Runtime themselves. "
        "It is loaded in a process of its own first, and refused if that is not enough.",
        json_schema_extra={"default": "half of the memory that is free, or four times the size of its files"},
    )
    policies: Path | None = Field(
        default=None,
        description="Folder of policies, <model>.toml, each used in place of the model's serving.toml: for a read-only repository.",
    )
    control: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether requests may load and unload models and register shared memory. off: only the repository decides what "
        "is served. auto: if --auth says who may, or no other machine reaches a port.",
    )

    require_signatures: Path | None = Field(
        default=None,
        description="Public keys or certificates (PEM), a file or a folder of them: only versions that one of them has signed are "
        "served (`convoy sign`, or OpenSSF's model-signing). Read at the start.",
        json_schema_extra={"metavar": "KEYS"},
    )
    shared_memory_prefix: tuple[str, ...] = Field(
        default=(),
        description="Beginning of the names of the POSIX shared memory objects that clients on this machine may register, such as "
        "convoy-clients-. Without it shared memory is off.",
        json_schema_extra={"metavar": "PREFIX"},
    )

    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | Literal["auto"] = Field(
        default=1,
        description="Processes that share the gRPC port; each loads all models and serves a share of the connections. auto: as "
        "many as there are CPUs if one CPU computes a picture within a millisecond with each of the models, and memory allows it; "
        "else one. The log says why.",
    )
    worker_start_seconds: float = Field(
        default=600.0,
        gt=0,
        le=1e6,
        description="With several workers, how long one may take to load its models before it counts as failed.",
    )

    transport: Literal["auto", "fast", "public"] = Field(
        default="auto",
        description="How gRPC is served: fast is one thread on gRPC's completion queue, public is grpcio's asyncio server; auto "
        "takes fast where it works.",
    )
    compression: Literal["none", "deflate", "gzip"] = Field(
        default="none",
        description="Compression of replies, for clients that accept it.",
    )
    max_message_bytes: int | None = Field(
        default=None,
        ge=2**20,
        le=MAX_MESSAGE_BYTES,
        description="Largest gRPC request and HTTP body.",
        json_schema_extra={"default": "the largest request that the models take"},
    )
    max_inflight_bytes: int | None = Field(
        default=None,
        ge=2**20,
        le=2**62,
        description="Most bytes of requests in flight, of both ports together: one beyond it is refused, and may be sent again. At "
        "least a largest message. With several workers each has its share.",
        json_schema_extra={"default": "a quarter of the memory that the cgroup or the machine has"},
    )
    max_json_bytes: int = Field(
        default=16 * 2**20,
        ge=2**10,
        le=MAX_MESSAGE_BYTES,
        description="Largest JSON in an HTTP body, decompressed: a number in it may need ten times its length in memory. Tensors "
        "as binary data and pictures do not count.",
    )
    message_seconds: float = Field(
        default=60.0,
        ge=1,
        le=1e6,
        description="How long the message of a gRPC call may take to arrive. While memory is short, calls that wait for theirs are "
        "ended earlier, the youngest first.",
    )
    decode_seconds: float = Field(
        default=10.0,
        gt=0,
        le=1e6,
        description="Longest time that decoding one picture may take: of those that are decoded in processes of their own, because "
        "they may need long or much memory. Beyond it the picture is refused, and the process replaced.",
    )
    max_metadata_bytes: int | None = Field(
        default=None,
        ge=8192,
        le=2**24,
        description="Largest metadata of a gRPC call, where each key counts 32 bytes more, and largest header of an HTTP request.",
        json_schema_extra={"default": "16384 for gRPC, 65536 for HTTP"},
    )
    max_concurrent_streams: int = Field(
        default=1024,
        ge=1,
        le=2**31 - 1,
        description="Concurrent calls on one connection; more wait in the client.",
    )
    max_connection_age_seconds: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Ask clients to reconnect after about this time, so that load balancers spread them; 0 never does.",
    )
    max_connection_age_grace_seconds: float = Field(
        default=30.0,
        ge=0,
        le=1e6,
        description="How long calls may continue on a connection that has reached its age.",
    )
    keepalive_seconds: float = Field(
        default=0.0,
        ge=0,
        le=1e6,
        description="Ping an idle connection after this time; 0 leaves gRPC's default of two hours.",
    )
    min_ping_interval_seconds: float = Field(
        default=5.0,  # Go and Java ping every 10 s at most; the third ping that is early, be it by a millisecond, ends a connection
        ge=0,
        le=1e6,
        description="Disconnect clients that ping more often than this while no data is sent to them; 0 allows any rate. Leave a "
        "margin: pings do not arrive exactly on time.",
    )
    channelz: bool = Field(
        default=False,
        description="Serve grpc.channelz.v1.Channelz, which shows connections, addresses and counts to every client.",
    )

    lame_duck_seconds: float = Field(
        default=1.0,
        ge=0,
        le=3600,
        description="After SIGTERM, how long requests are still accepted while health already says NOT_SERVING, so that clients "
        "and load balancers can turn to other servers. Not after Ctrl-C.",
    )
    drain_seconds: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="After the lame-duck time, how long accepted requests may take to finish.",
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Lowest level to log, to stderr.")
    log_format: Literal["text", "json"] = Field(default="text", description="Lines for people, or JSON for programs.")
    access_log_sample: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Fraction of requests to log: model, items, durations and status, never their content.",
    )
    audit_log: Path | None = Field(
        default=None,
        description="File for a JSON line about each change of models and shared memory, with who asked for it, and each refusal "
        "of --auth; - for stderr. A file that was moved away is made anew.",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="OpenTelemetry collector to send spans to by OTLP over gRPC; needs the extra 'tracing'.",
        json_schema_extra={"metavar": "http[s]://HOST:PORT"},
    )
    trace_sample: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Fraction to trace of the requests that carry no trace context; for the others the client decides.",
    )

    @property
    def worker_count(self) -> int:
        """How many processes serve; `auto` must have been replaced (`workers/survey.py`)."""
        assert self.workers != "auto"  # noqa: S101 - for mypy
        return self.workers

    @property
    def control_seconds(self) -> float:
        """How long a request may wait for a model: it is loaded twice, first in a process of its own."""
        return 2 * self.load_seconds + 10

    @property
    def page_offered(self) -> bool:
        """Whether the web page is served; its requests go over REST's port."""
        return self.page and self.rest
