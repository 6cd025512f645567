-- Distributes a migrated and still empty schema by tenant, on the coordinator of a Citus cluster:
--
--   psql --single-transaction --set ON_ERROR_STOP=1 --file deploy/citus/distribute.sql
--
-- README.md beside this file says what that is good for, and what it is not.

-- Everybody reads it, and everything hangs on it: on every node whole.
SELECT create_reference_table('tenants');

-- A foreign key between distributed tables needs both of them distributed, and colocated: those that are referred to
-- come first. Runs and groups refer to each other, so one of the two keys is taken off meanwhile.
ALTER TABLE orchestration_groups DROP CONSTRAINT orchestration_groups_tenant_id_orchestrator_run_id_fkey;

SELECT create_distributed_table('tenant_flags', 'tenant_id', colocate_with => 'none');
SELECT create_distributed_table('agents', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('orchestrator_policies', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('orchestrator_allowlist', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('run_trees', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('orchestration_groups', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('agent_runs', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('root_run_keys', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('run_payloads', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('run_deadlines', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('run_leases', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('cancellations', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('tools', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('tool_versions', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('retrieval_pipelines', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('retrieval_documents', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('retrieval_chunks', 'tenant_id', colocate_with => 'tenant_flags');

-- Partitioned by time: each partition is distributed along with its table, and so are those that are made later.
SELECT create_distributed_table('run_events', 'tenant_id', colocate_with => 'tenant_flags');
SELECT create_distributed_table('policy_decisions', 'tenant_id', colocate_with => 'tenant_flags');

ALTER TABLE orchestration_groups
    ADD CONSTRAINT orchestration_groups_tenant_id_orchestrator_run_id_fkey
    FOREIGN KEY (tenant_id, orchestrator_run_id) REFERENCES agent_runs(tenant_id, run_id)
    DEFERRABLE INITIALLY IMMEDIATE;
