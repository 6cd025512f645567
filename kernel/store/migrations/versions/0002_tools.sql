-- Tools, in versions that never change; `latest_version` is the one in use, and its row is the lock under which
-- versions are numbered.
CREATE TABLE tools (
    tenant_id      uuid NOT NULL REFERENCES tenants,
    tool_id        uuid NOT NULL,
    slug           text COLLATE "C" NOT NULL,
    is_active      boolean NOT NULL DEFAULT true,
    latest_version integer NOT NULL CHECK (latest_version >= 1),
    created_at     timestamptz NOT NULL DEFAULT now(),
    updated_at     timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, tool_id),
    CONSTRAINT tools_slug UNIQUE (tenant_id, slug)
);

CREATE TABLE tool_versions (
    tenant_id           uuid NOT NULL,
    tool_id             uuid NOT NULL,
    version             integer NOT NULL CHECK (version >= 1),
    name                text NOT NULL,
    implementation_type text NOT NULL CHECK (implementation_type IN ('agent_call', 'rag_retrieval')),
    config              json NOT NULL,
    input_schema        json,
    output_schema       json,
    created_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, tool_id, version),
    FOREIGN KEY (tenant_id, tool_id) REFERENCES tools
);

CREATE TABLE retrieval_pipelines (
    tenant_id     uuid NOT NULL REFERENCES tenants,
    pipeline_id   uuid NOT NULL,
    name          text NOT NULL,
    language      text NOT NULL,
    embedding_dim integer CHECK (embedding_dim >= 1),
    chunk_size    integer NOT NULL CHECK (chunk_size >= 1),
    chunk_overlap integer NOT NULL CHECK (chunk_overlap >= 0),
    is_active     boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, pipeline_id)
);

-- The row is the lock under which a document's chunks are replaced.
CREATE TABLE retrieval_documents (
    tenant_id   uuid NOT NULL,
    pipeline_id uuid NOT NULL,
    document_id text COLLATE "C" NOT NULL,
    metadata    jsonb NOT NULL,
    chunk_count integer NOT NULL CHECK (chunk_count >= 1),
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, pipeline_id, document_id),
    FOREIGN KEY (tenant_id, pipeline_id) REFERENCES retrieval_pipelines
);

-- `words` also has a word that stands for the pipeline, so that one index of words serves all pipelines and a search
-- meets none but its own. Embeddings are of length 1, so that their product is their cosine; as plain numbers, so that
-- the table is the same where pgvector is missing.
CREATE TABLE retrieval_chunks (
    tenant_id   uuid NOT NULL,
    pipeline_id uuid NOT NULL,
    document_id text COLLATE "C" NOT NULL,
    ordinal     integer NOT NULL CHECK (ordinal >= 0),
    body        text NOT NULL,
    words       tsvector NOT NULL,
    embedding   real[],
    PRIMARY KEY (tenant_id, pipeline_id, document_id, ordinal),
    FOREIGN KEY (tenant_id, pipeline_id, document_id) REFERENCES retrieval_documents ON DELETE CASCADE
);
CREATE INDEX retrieval_chunks_words ON retrieval_chunks USING gin (words);

-- pgvector is taken where the server offers it and we may install it; an administrator may do so later just as well.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector' AND installed_version IS NULL) THEN
        CREATE EXTENSION vector;
        COMMENT ON EXTENSION vector IS 'installed by remit migrate';
    END IF;
EXCEPTION
    WHEN insufficient_privilege OR feature_not_supported OR undefined_file THEN
        RAISE NOTICE 'pgvector is not installed (%): searches go by words only', SQLERRM;
END
$$;
