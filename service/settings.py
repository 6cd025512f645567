"""The settings of a process: read once, checked once, and passed on. Nothing else reads the environment."""

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1024 * 1024


class Settings(BaseSettings):
    """`REMIT_*` in the environment; each has a default under which `remit up` needs nothing installed."""

    model_config = SettingsConfigDict(env_prefix="REMIT_", extra="ignore")

    data_dir: Path = Field(Path(".remit"), description="Where keys, the embedded database and the bundle are kept.")
    database_url: str | None = Field(None, description="PostgreSQL; without it `remit up` runs one of its own.")
    database_pool_size: int = Field(12, ge=2, le=200, description="Connections of one process.")
    opa_url: str | None = Field(None, description="An OPA that pulls our bundle; without it one is run as a child.")
    opa_token: SecretStr | None = Field(None, description="The bearer token that OPA at REMIT_OPA_URL expects.")
    opa_binary: Path | None = Field(None, description="The `opa` to run and to build bundles with.")
    opa_timeout_s: float = Field(1.0, gt=0, le=30, description="How long a decision may take.")
    policy_dir: Path | None = Field(None, description="The bundle's sources, instead of those that come with Remit.")
    policy_max_age_s: float | None = Field(
        None, gt=0, validation_alias="REMIT_POLICY_MAX_AGE", description="How old a remote OPA's last pull may be."
    )
    bundle_token: SecretStr | None = Field(None, description="The token with which OPAs pull the bundle.")
    bundle_key_file: Path | None = Field(
        None, description="The P-256 key (PEM) that signs bundles; API processes share it. Made if unset."
    )
    bundle_url: str | None = Field(None, description="This service as OPA reaches it, for the embedded OPA's pulls.")
    admin_token: SecretStr | None = Field(
        None, description="The admin's token; generated in the data directory if unset."
    )
    token_key_file: Path | None = Field(
        None,
        description="The Ed25519 key (PEM) that signs tokens; API processes share it. Or a directory of keys: the last"
        " by name signs, all verify.",
    )
    run_token_ttl_s: int = Field(86_400, ge=1, le=604_800)
    max_body_bytes: int = Field(MIB, ge=1024, le=256 * MIB, description="The largest request body.")
    tenant_max_in_flight: int = Field(
        256, ge=1, description="Spawns, dry runs and starts of one tenant that one process works on at once."
    )
    tenant_max_active_runs: int = Field(1_000_000, ge=1, description="Active runs of one tenant, softly.")
    spawn_lanes: int = Field(2, ge=1, le=32, description="Batches of spawns in flight.")
    graph_lease_s: int = Field(15, ge=2, le=3600, description="How long after a crash a graph goes on elsewhere.")
    graph_active_nodes: int = Field(16, ge=1, le=1000, description="Nodes of graphs that work at once in one process.")
    checkpoint_pool_size: int = Field(4, ge=1, le=100, description="Connections for the checkpoints of graphs.")
    decision_retention_days: int = Field(30, ge=1, description="How long decisions are kept on record.")
    event_retention_days: int | None = Field(
        None, ge=1, description="How long events of ended trees are kept; unset: for ever."
    )
    metrics_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="Where `remit reconcile` and `remit work` serve their metrics; the API does so at /metrics.",
    )
    metrics_host: str = Field("127.0.0.1", description="The address for REMIT_METRICS_PORT.")
    tracing: bool = Field(False, description="Traces by OpenTelemetry, set up by OTEL_*; needs the extra `otel`.")
    log_format: Literal["json", "console"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("database_url")
    @classmethod
    def _only_asyncpg(cls, value: str | None) -> str | None:
        """Accept the usual spellings of a PostgreSQL URL."""
        if value is None:
            return None
        for prefix in ("postgresql+asyncpg://", "postgresql://", "postgres://"):
            if value.startswith(prefix):
                return "postgresql+asyncpg://" + value.removeprefix(prefix)
        raise ValueError("must be a PostgreSQL URL, such as postgresql://user:password@host/database")
