-- The first shape of the store.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE access_key (
    key_id TEXT PRIMARY KEY,
    secret TEXT NOT NULL,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    principal TEXT NOT NULL,
    session_token TEXT,
    created REAL NOT NULL,
    expires REAL,
    revoked REAL
) WITHOUT ROWID;

-- One row a machine, as long as its driver may hold anything of it.
CREATE TABLE machine (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    wanted TEXT NOT NULL CHECK (wanted IN ('RUNNING', 'STOPPED', 'GONE')),
    state TEXT NOT NULL,
    spec TEXT NOT NULL,
    asked_at REAL NOT NULL,
    made INTEGER NOT NULL DEFAULT 0,
    started_at REAL,
    silent_since REAL,
    starts INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    version INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    facts TEXT NOT NULL DEFAULT '{}',
    waiting TEXT NOT NULL DEFAULT '',
    stepped_at REAL NOT NULL,
    due REAL,
    lease_by TEXT,
    lease_until REAL
) WITHOUT ROWID;
CREATE INDEX machine_due ON machine (due) WHERE due IS NOT NULL;

CREATE TABLE image_builder (
    id INTEGER PRIMARY KEY,
    account TEXT NOT NULL,
    region TEXT NOT NULL,
    name TEXT NOT NULL,
    arn TEXT NOT NULL,
    machine_id TEXT NOT NULL UNIQUE REFERENCES machine (id),
    asked TEXT NOT NULL,
    json BLOB NOT NULL,
    cbor BLOB NOT NULL,
    UNIQUE (account, region, name)
);

CREATE TABLE tag (
    arn TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (arn, key)
) WITHOUT ROWID;

CREATE TABLE base_image (
    name TEXT PRIMARY KEY,
    reference TEXT NOT NULL,
    digest TEXT NOT NULL,
    created REAL NOT NULL,
    size_bytes INTEGER NOT NULL,
    description TEXT NOT NULL
) WITHOUT ROWID;

-- What people waited for, step by step; outlives the resource so that its end can be read.
CREATE TABLE step (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    machine_id TEXT NOT NULL,
    step TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    started REAL NOT NULL,
    ended REAL NOT NULL,
    engine_s REAL NOT NULL DEFAULT 0,
    outcome TEXT NOT NULL CHECK (outcome IN ('done', 'failed', 'retrying')),
    code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '',
    engine_id TEXT NOT NULL DEFAULT '',
    request_id TEXT NOT NULL DEFAULT ''
);
CREATE INDEX step_owner ON step (owner, id);
CREATE INDEX step_ended ON step (ended);

CREATE TABLE ticket_used (
    nonce TEXT PRIMARY KEY,
    expires REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE fault (
    id INTEGER PRIMARY KEY,
    owner TEXT NOT NULL,
    step TEXT NOT NULL,
    moment TEXT NOT NULL CHECK (moment IN ('before', 'after', 'refused')),
    error_code TEXT NOT NULL,
    message TEXT NOT NULL,
    times INTEGER NOT NULL
);

CREATE TABLE health (
    role TEXT PRIMARY KEY,
    ok INTEGER NOT NULL,
    code TEXT NOT NULL,
    why TEXT NOT NULL,
    next TEXT NOT NULL,
    at REAL NOT NULL,
    figures TEXT NOT NULL DEFAULT '{}' -- metrics of the role: name, number
) WITHOUT ROWID;

-- Who looks at a machine's desktop, as the edge last said.
CREATE TABLE viewing (
    machine_id TEXT PRIMARY KEY,
    viewers INTEGER NOT NULL,
    last_input REAL,
    at REAL NOT NULL
) WITHOUT ROWID;
