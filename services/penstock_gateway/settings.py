"""Settings of the gateway process."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from penstock_core.settings import SettingsError, TlsSettings
from penstock_core.tls import Tls
from penstock_gateway.protocol import Patience

_MIB = 1024 * 1024


class GatewaySettings(TlsSettings):
    """``PENSTOCK_GATEWAY_*``."""

    model_config = SettingsConfigDict(env_prefix="PENSTOCK_GATEWAY_", frozen=True, extra="forbid")

    listen: str = Field("127.0.0.1:8000", description="host:port of the HTTP server")
    router: str = Field("127.0.0.1:50051", description="host:port or unix:path of the router")
    batch: str = Field(
        "127.0.0.1:50052", description="address of the batch service; empty serves no batches"
    )
    max_body_bytes: int = Field(8 * _MIB, gt=0, description="largest JSON body, in bytes")
    max_upload_bytes: int = Field(512 * _MIB, gt=0, description="largest file upload, in bytes")
    head_timeout_s: float = Field(
        10.0, gt=0, description="seconds that a client may take for a request's head"
    )
    body_timeout_s: float = Field(
        30.0, gt=0, description="seconds that a request's body may be behind its least pace"
    )
    min_body_rate: float = Field(
        4096.0, gt=0, description="that pace, in bytes a second; slower ones are cut off with 408"
    )
    max_requests: int = Field(512, gt=0, description="requests in flight; more are refused")
    request_timeout_s: float = Field(600.0, gt=0, description="deadline of each RPC, in seconds")
    router_patience_s: float = Field(
        10.0, ge=0, description="seconds that a request waits while no router can be reached"
    )
    grace_s: float = Field(30.0, ge=0, description="seconds that running requests get at shutdown")
    linger_s: float = Field(
        0.0, ge=0, description="seconds on SIGTERM of not being ready and still taking requests"
    )
    keys_file: str = Field(
        "", description="files of API keys, by comma, to refuse strangers before their body is read"
    )
    keys_url: str = Field("", repr=False, description="the same from Redis")
    https_cert: str = Field(
        "", description="PEM file of the certificate that HTTP clients see; makes it HTTPS"
    )
    https_key: str = Field("", description="PEM file of its private key")
    https_client_ca: str = Field(
        "", description="PEM file of CAs; only clients with a certificate of theirs are admitted"
    )

    def patience(self) -> Patience:
        """How long clients may take."""
        return Patience(self.head_timeout_s, self.body_timeout_s, self.min_body_rate)

    def https(self) -> Tls:
        """The HTTP server's files, checked. Raises SettingsError."""
        tls = Tls(
            self.https_cert,
            self.https_key,
            self.https_client_ca,
            client_auth=bool(self.https_client_ca),
        )
        try:
            tls.check()
        except ValueError as error:
            raise SettingsError(f"HTTPS_CERT, HTTPS_KEY, HTTPS_CLIENT_CA: {error}") from error
        return tls
