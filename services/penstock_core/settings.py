"""The base of each process's settings: environment only, typed, frozen, strict.

A variable that carries the process's prefix but no known name is an error: a typo must not
silently mean the default. What must not stand in an environment (it shows in process lists and
crash reports) may come as a file instead: ``PENSTOCK_SECRETS_DIR`` names a folder whose files are
called as the variables are, in small letters, as Docker's and Kubernetes' secrets are mounted.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from penstock_core.security.tls import Tls

SECRETS_DIR = "PENSTOCK_SECRETS_DIR"


class SettingsError(ValueError):
    """The environment does not describe valid settings; the message names each variable."""


class ProcessSettings(BaseSettings):
    """Base class. Subclasses set ``env_prefix`` and give every field a description with its unit."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Read the settings once, at start.

        Raises:
            SettingsError: an unknown variable with our prefix, a value that does not parse, or no
                folder of secrets where one is named.
        """
        prefix = cls.model_config.get("env_prefix", "")
        names = os.environ if environ is None else environ
        known = {f"{prefix}{field}".upper() for field in cls.model_fields}
        unknown = sorted(n for n in names if n.startswith(prefix) and n.upper() not in known)
        if unknown:
            raise SettingsError(
                f"unknown setting {', '.join(unknown)}; known are {', '.join(sorted(known))}"
            )
        folder = os.environ.get(SECRETS_DIR) or None
        if folder is not None and not Path(folder).is_dir():
            raise SettingsError(f"{SECRETS_DIR} names {folder}, and no such folder is there")
        try:
            return cls(_secrets_dir=folder)
        except ValidationError as error:
            lines = [
                f"{prefix}{'.'.join(map(str, item['loc'])).upper()}: {item['msg']}"
                for item in error.errors()
            ]
            raise SettingsError("; ".join(lines)) from error

    @classmethod
    def describe(cls) -> str:
        """One line a setting, for ``--help``."""
        prefix = cls.model_config.get("env_prefix", "")
        rows = []
        for name, field in cls.model_fields.items():
            default = "required" if field.is_required() else f"default {field.default!r}"
            rows.append(f"  {prefix}{name.upper():<28} {field.description or ''} ({default})")
        return "\n".join(rows)


class TlsSettings(ProcessSettings):
    """Settings of a process that listens or dials with TLS."""

    tls_cert: str = Field(
        "", description="PEM file of our certificate and its chain; makes listeners use TLS"
    )
    tls_key: str = Field("", description="PEM file of its private key")
    tls_ca: str = Field(
        "", description="PEM file of trusted CAs, or 'system'; makes our channels use TLS"
    )
    tls_client_auth: bool = Field(
        False, description="admit only clients with a certificate of tls_ca (mutual TLS)"
    )
    tls_server_name: str = Field(
        "", description="name in the certificates of servers we call; empty: their address"
    )

    def tls(self) -> Tls:
        """The files, checked. Raises SettingsError."""
        tls = Tls(
            self.tls_cert, self.tls_key, self.tls_ca, self.tls_server_name, self.tls_client_auth
        )
        try:
            tls.check()
        except ValueError as error:
            raise SettingsError(f"TLS_CERT, TLS_KEY, TLS_CA: {error}") from error
        return tls
