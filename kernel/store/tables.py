"""The catalog's tables, for the statements written in SQLAlchemy Core. The migrations are the schema's source."""

from sqlalchemy import BigInteger, Boolean, Column, DateTime, Integer, MetaData, Table, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY, JSON

metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("slug", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("max_active_runs", BigInteger),
    Column("created_at", DateTime(timezone=True), nullable=False),
)

tenant_flags = Table(
    "tenant_flags",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("option_a_graphspec_v2", Boolean, nullable=False),
    Column("option_b_runtime_primitives", Boolean, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

agents = Table(
    "agents",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("agent_id", Uuid, primary_key=True),
    Column("slug", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("capability_tags", ARRAY(Text), nullable=False),
    Column("graph_definition", JSON(none_as_null=True)),
    Column("revision", BigInteger, nullable=False),
    Column("created_at", DateTime(timezone=True), nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

orchestrator_policies = Table(
    "orchestrator_policies",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("agent_id", Uuid, primary_key=True),
    Column("max_depth", Integer, nullable=False),
    Column("max_fanout", Integer, nullable=False),
    Column("max_children_total", Integer, nullable=False),
    Column("join_timeout_s", Integer, nullable=False),
    Column("default_failure_policy", Text, nullable=False),
    Column("enforce_published_only", Boolean, nullable=False),
    Column("allowed_scope_subset", ARRAY(Text), nullable=False),
    Column("parent_close_policy", Text, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)

orchestrator_allowlist = Table(
    "orchestrator_allowlist",
    metadata,
    Column("tenant_id", Uuid, primary_key=True),
    Column("agent_id", Uuid, primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("target_agent_id", Uuid),
    Column("target_agent_slug", Text),
    Column("capability_tag", Text),
)
