-- Every question that is put to the store, by name. `:x` are parameters.

-- name: version
PRAGMA data_version;

-- name: meta
SELECT value FROM meta WHERE key = :key;

-- name: set_meta
INSERT INTO meta (key, value) VALUES (:key, :value) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: key
SELECT key_id, secret, account, name, principal, session_token, created, expires, revoked
FROM access_key WHERE key_id = :key_id;

-- name: keys
SELECT key_id, secret, account, name, principal, session_token, created, expires, revoked
FROM access_key ORDER BY created, key_id;

-- name: add_key
INSERT INTO access_key (key_id, secret, account, name, principal, session_token, created, expires)
VALUES (:key_id, :secret, :account, :name, :principal, :session_token, :created, :expires);

-- name: revoke_key
UPDATE access_key SET revoked = :now WHERE key_id = :key_id AND revoked IS NULL;

-- name: machine
SELECT id, owner, wanted, state, spec, asked_at, made, started_at, silent_since, starts, attempts, version, error,
    facts, waiting, stepped_at, due, lease_by
FROM machine WHERE id = :id;

-- name: add_machine
INSERT INTO machine (id, owner, wanted, state, spec, asked_at, stepped_at, due)
VALUES (:id, :owner, :wanted, :state, :spec, :now, :now, :now);

-- name: want
-- What an API handler writes: the new wish, the state that shows it, and that it is due now.
UPDATE machine SET wanted = :wanted, state = :state, asked_at = :now, stepped_at = :now, due = :now, attempts = 0,
    starts = 0, started_at = NULL, silent_since = NULL, error = NULL, waiting = '', version = version + 1
WHERE id = :id;

-- name: claim
-- Machines that are due, leased to one reconciler. Its own leases come too: it knows which it still works on, and
-- a lease whose end could not be written (a full disk) is taken up again. Due or leased further ahead than anything
-- is ever put off, it was written before the clock was set back.
UPDATE machine SET lease_by = :by, lease_until = :until
WHERE id IN (
    SELECT id FROM machine
    WHERE (due <= :now OR due > :now + :wait_max)
        AND (lease_by IS NULL OR lease_by = :by OR lease_until <= :now OR lease_until > :until)
    ORDER BY due LIMIT :most
)
RETURNING id;

-- name: next_due
SELECT min(due) FROM machine WHERE due IS NOT NULL AND lease_by IS NULL;

-- name: save_machine
-- What the executor writes after a step. The lease must still be its own.
UPDATE machine SET state = :state, made = :made, started_at = :started_at, silent_since = :silent_since,
    starts = :starts, attempts = :attempts, version = version + 1, error = :error, facts = :facts, waiting = :waiting,
    stepped_at = :stepped_at, due = :due, lease_by = NULL, lease_until = NULL
WHERE id = :id AND lease_by = :by;

-- name: forget_machine
DELETE FROM machine WHERE id = :id AND lease_by = :by AND wanted = 'GONE';

-- name: free_leases
-- A reconciler that starts frees what its killed forerunner held: there is one reconciler for each data folder.
UPDATE machine SET lease_by = NULL, lease_until = NULL WHERE lease_by IS NOT NULL;

-- name: wake_machine
-- What follows is counted from here, not from when it came to rest.
UPDATE machine SET due = :now, stepped_at = :now WHERE id = :id AND due IS NULL;

-- name: machines_after
-- All machines, by id, a slice at a time: for the sweep and for `survey`.
SELECT id, owner, wanted, state, due IS NOT NULL AS busy FROM machine WHERE id > :after ORDER BY id LIMIT :most;

-- name: states
SELECT state, count(*) FROM machine GROUP BY state;

-- name: builder
SELECT id, arn, machine_id, asked FROM image_builder
WHERE account = :account AND region = :region AND name = :name;

-- name: builder_of_machine
SELECT id, arn, machine_id, asked FROM image_builder
WHERE machine_id = :machine_id;

-- name: builders_named
SELECT account, region, name, arn, machine_id FROM image_builder WHERE name = :name;

-- name: builder_json
SELECT json FROM image_builder WHERE account = :account AND region = :region AND name = :name;

-- name: builder_cbor
SELECT cbor FROM image_builder WHERE account = :account AND region = :region AND name = :name;

-- name: page_json
SELECT name, json FROM image_builder WHERE account = :account AND region = :region AND name > :after
ORDER BY name LIMIT :most;

-- name: page_cbor
SELECT name, cbor FROM image_builder WHERE account = :account AND region = :region AND name > :after
ORDER BY name LIMIT :most;

-- name: count_builders
-- No further than the quota: the cost does not grow with what is stored.
SELECT count(*) FROM (SELECT 1 FROM image_builder WHERE account = :account AND region = :region LIMIT :most);

-- name: add_builder
INSERT INTO image_builder (account, region, name, arn, machine_id, asked, json, cbor)
VALUES (:account, :region, :name, :arn, :machine_id, :asked, :json, :cbor);

-- name: save_builder
UPDATE image_builder SET asked = :asked, json = :json, cbor = :cbor WHERE id = :id;

-- name: forget_builder
DELETE FROM image_builder WHERE machine_id = :machine_id;

-- name: tags
SELECT key, value FROM tag WHERE arn = :arn ORDER BY key;

-- name: set_tag
INSERT INTO tag (arn, key, value) VALUES (:arn, :key, :value)
ON CONFLICT (arn, key) DO UPDATE SET value = excluded.value;

-- name: drop_tag
DELETE FROM tag WHERE arn = :arn AND key = :key;

-- name: drop_tags
DELETE FROM tag WHERE arn = :arn;

-- name: base_image
SELECT name, reference, digest, created, size_bytes, description FROM base_image WHERE name = :name;

-- name: base_images
SELECT name, reference, digest, created, size_bytes, description FROM base_image ORDER BY name;

-- name: set_base_image
INSERT INTO base_image (name, reference, digest, created, size_bytes, description)
VALUES (:name, :reference, :digest, :created, :size_bytes, :description)
ON CONFLICT (name) DO UPDATE SET reference = excluded.reference, digest = excluded.digest,
    created = excluded.created, size_bytes = excluded.size_bytes, description = excluded.description;

-- name: drop_base_image
DELETE FROM base_image WHERE name = :name;

-- name: add_step
INSERT INTO step (owner, machine_id, step, attempt, started, ended, engine_s, outcome, code, reason, engine_id,
    request_id)
VALUES (:owner, :machine_id, :step, :attempt, :started, :ended, :engine_s, :outcome, :code, :reason, :engine_id,
    :request_id);

-- name: cap_steps
-- One comes, one goes.
DELETE FROM step WHERE id = (SELECT id FROM step WHERE owner = :owner ORDER BY id DESC LIMIT 1 OFFSET :most);

-- name: retry_step
-- A step that fails again and again is one line with a growing count.
UPDATE step SET attempt = :attempt, ended = :ended, engine_s = engine_s + :engine_s, code = :code, reason = :reason
WHERE id = (SELECT max(id) FROM step WHERE owner = :owner) AND machine_id = :machine_id AND step = :step
    AND outcome = 'retrying';

-- name: steps
SELECT id, owner, machine_id, step, attempt, started, ended, engine_s, outcome, code, reason,
    engine_id, request_id
FROM step WHERE owner = :owner AND id > :after ORDER BY id LIMIT :most;

-- name: steps_after
SELECT id, owner, machine_id, step, attempt, started, ended, engine_s, outcome, code, reason,
    engine_id, request_id
FROM step WHERE id > :after ORDER BY id LIMIT :most;

-- name: last_step
SELECT coalesce(max(id), 0) FROM step;

-- name: prune_steps
DELETE FROM step WHERE id IN (SELECT id FROM step WHERE ended < :before ORDER BY ended LIMIT 10000);

-- name: use_ticket
INSERT INTO ticket_used (nonce, expires) VALUES (:nonce, :expires) ON CONFLICT DO NOTHING;

-- name: prune_tickets
DELETE FROM ticket_used WHERE expires < :now;

-- name: add_fault
INSERT INTO fault (owner, step, moment, error_code, message, times)
VALUES (:owner, :step, :moment, :error_code, :message, :times);

-- name: faults
SELECT id, owner, step, moment, error_code, message, times FROM fault ORDER BY id;

-- name: fault_for
SELECT id, moment, error_code, message FROM fault
WHERE (owner = :owner OR owner = '*') AND step = :step AND times > 0 ORDER BY id LIMIT 1;

-- name: use_fault
UPDATE fault SET times = times - 1 WHERE id = :id;

-- name: prune_faults
DELETE FROM fault WHERE times <= 0;

-- name: drop_faults
DELETE FROM fault WHERE :id IS NULL OR id = :id;

-- name: set_health
INSERT INTO health (role, ok, code, why, next, at, figures) VALUES (:role, :ok, :code, :why, :next, :at, :figures)
ON CONFLICT (role) DO UPDATE SET ok = excluded.ok, code = excluded.code, why = excluded.why, next = excluded.next,
    at = excluded.at, figures = excluded.figures;

-- name: health
SELECT role, ok, code, why, next, at, figures FROM health WHERE role = :role;

-- name: builder_names
-- For people: completion, and the nearest name to one that is misspelt.
SELECT DISTINCT name FROM image_builder ORDER BY name LIMIT :most;

-- name: owner_named
-- The newest resource of this name that the timeline remembers: for people who ask about what is gone.
SELECT owner FROM step WHERE owner LIKE '%/' || :name AND substr(owner, -length(:name) - 1) = '/' || :name
ORDER BY id DESC LIMIT 1;

-- name: usual
-- How long a step took, newest first, among the last few thousand steps of all: enough to say what is usual.
SELECT ended - started AS took FROM step
WHERE id > (SELECT coalesce(max(id), 0) - 5000 FROM step) AND step = :step AND outcome = 'done'
ORDER BY id DESC LIMIT 20;

-- name: builders_after
-- All image builders with their machines, in order, a slice at a time.
SELECT id, arn, name, machine_id FROM image_builder WHERE id > :after ORDER BY id LIMIT :most;

-- name: set_viewing
INSERT INTO viewing (machine_id, viewers, last_input, at) VALUES (:machine_id, :viewers, :last_input, :at)
ON CONFLICT (machine_id) DO UPDATE SET viewers = excluded.viewers, at = excluded.at,
    last_input = coalesce(excluded.last_input, last_input);

-- name: viewing
SELECT viewers, last_input, at FROM viewing WHERE machine_id = :machine_id;

-- name: forget_viewing
DELETE FROM viewing WHERE machine_id = :machine_id;

-- name: stream_target
SELECT b.name, b.account, m.wanted, m.state, m.started_at, m.error
FROM machine AS m JOIN image_builder AS b ON b.machine_id = m.id WHERE m.id = :machine_id;

-- name: newest_steps
SELECT id, owner, machine_id, step, attempt, started, ended, engine_s, outcome, code, reason, engine_id, request_id
FROM step ORDER BY id DESC LIMIT :most;

-- name: newest_steps_of
SELECT id, owner, machine_id, step, attempt, started, ended, engine_s, outcome, code, reason, engine_id, request_id
FROM step WHERE owner = :owner ORDER BY id DESC LIMIT :most;

-- name: integrity
PRAGMA quick_check(1);

-- name: machine_of
SELECT machine_id FROM image_builder WHERE arn = :arn;
