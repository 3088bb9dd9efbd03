"""`wardkey doctor`: checks a deployment and shows how to fix each problem."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import click
from cryptography import x509

from wardkey.actions.accounts.organizations import find, list_all
from wardkey.actions.core.audit import list_chains
from wardkey.actions.core.audit_walks import verify_chain
from wardkey.actions.operations.proxy_mistakes import list_mistakes
from wardkey.cli.server_file import find_server
from wardkey.cli.terminal import as_json, print_output, settings
from wardkey.config import SERVING, Config
from wardkey.db.diagnostics import check_usage, storage_facts
from wardkey.db.engine import Database, open_database, wall_clock
from wardkey.db.kept_keys import kept_files
from wardkey.db.master_key import (
    PepperState,
    check_peppers,
    is_initialized,
    open_vault,
    resolve_master_key,
)
from wardkey.deployment import master_key_source, sign_in_issuer
from wardkey.domain.errors import OrganizationNotFound, UnhealthyDeployment, WardkeyError
from wardkey.domain.principal import operator
from wardkey.domain.times import DAY_MS, iso
from wardkey.preflight import check_listening, check_tls

_MIN_FREE_BYTES = 256 * 1_048_576
_MAX_CLOCK_DRIFT_MS = 2_000
_MIN_CLOCK_MS = 1_700_000_000_000


class State(StrEnum):
    """The result of one check."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: its subject, its result, and what to do if something is wrong."""

    state: State
    what: str
    said: str


@click.command()
@as_json
@settings(*SERVING)
def doctor(config: Config, *, as_json: bool) -> None:
    """Check a deployment and show how to fix each problem.

    The command changes nothing and can run beside a server. Exits with 6 if a check fails.
    """
    findings = list(_examine(config))
    lines = [f"{item.state:<8} {item.what}: {item.said}" for item in findings]
    print_output([asdict(item) for item in findings], as_json=as_json, text="\n".join(lines))
    faults = sum(item.state is State.FAULT for item in findings)
    if faults:
        raise UnhealthyDeployment(f"{faults} of {len(findings)} checks failed.")


def _examine(config: Config) -> Iterator[Finding]:
    if not config.data_dir.is_dir():
        yield Finding(
            State.FAULT, "data folder",
            f"{config.data_dir} does not exist; name it with --data-dir, or start `wardkey up`.",
        )  # fmt: skip
        return
    yield _private("data folder", config.data_dir, 0o700)
    if not os.access(config.data_dir, os.R_OK | os.X_OK):
        return
    yield from _master_key_file(config)
    yield _space(config.data_dir)
    yield _listening(config)
    yield _server(config)
    if config.behind_proxy:
        yield _public_url(config)
    if config.tls_cert or config.tls_key:
        yield from _certificate(config)
    yield _clock(wall_clock())
    yield _sign_in(config)
    try:
        if not is_initialized(config.storage_url):
            yield Finding(State.FAULT, "database", "empty; start `wardkey up` once")
            return
        master = resolve_master_key(master_key_source(config), config.storage_url)
    except WardkeyError as error:
        yield Finding(State.FAULT, "database", f"{error.code}: {error.detail}")
        return
    yield Finding(State.OK, "database", "opens with this master key")
    yield _at_rest(config)
    database = open_database(config.storage_url, master, config.brand)
    try:
        yield from _database(database, config)
    except WardkeyError as error:
        yield Finding(State.FAULT, "database", f"{error.code}: {error.detail}")
    finally:
        database.close()


def _private(what: str, path: Path, private_mode: int) -> Finding:
    status = path.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & ~private_mode:
        return Finding(
            State.FAULT,
            what,
            f"other users can access it ({mode:04o}); run chmod {private_mode:o} {path}",
        )
    if status.st_uid != os.geteuid() and os.geteuid() != 0:
        return Finding(State.FAULT, what, f"owned by another user; run chown on {path}")
    if not os.access(path, os.R_OK | os.W_OK):
        rights = "u+rwx" if path.is_dir() else "u+rw"
        return Finding(State.FAULT, what, f"not writable; run chmod {rights} {path}")
    return Finding(State.OK, what, f"{path}, {mode:04o}")


def _master_key_file(config: Config) -> Iterator[Finding]:
    if config.master_key or config.master_key_command:
        yield Finding(State.OK, "master key", "read from the environment or a command")
        return
    path = config.master_key_path
    if not path.exists():
        yield Finding(State.FAULT, "master key", f"{path} does not exist; restore the key there")
        return
    yield _private("master key", path, 0o600)
    for version, kept_path in kept_files(path).items():
        yield _private(f"old master key {version}", kept_path, 0o600)
    if config.key_beside_data:
        yield Finding(
            State.WARNING, "master key",
            "stored beside the database, so a stolen folder contains both; move it elsewhere with "
            "--master-key-file, and keep a copy",
        )  # fmt: skip


def _space(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    said = f"{free // 1_048_576:,} MiB free"
    if free < _MIN_FREE_BYTES:
        return Finding(State.FAULT, "disk", f"{said}; free some space, or writes will fail")
    return Finding(State.OK, "disk", said)


def _listening(config: Config) -> Finding:
    try:
        check_listening(config)
    except WardkeyError as error:
        return Finding(State.FAULT, "listening", error.detail)
    return Finding(State.OK, "listening", f"a server can listen on {config.listen}")


def _server(config: Config) -> Finding:
    try:
        server = find_server(config.data_dir)
    except WardkeyError as error:
        return Finding(State.OK, "server", error.detail)
    where = f"process {server.pid}" if server.is_here else "a process in another container"
    said = f"running as {where}; its URL is in {config.data_dir / 'url'}"
    if server.fault:
        return Finding(State.WARNING, "server", f"{said}; its last reload failed: {server.fault}")
    return Finding(State.OK, "server", said)


def _public_url(config: Config) -> Finding:
    if config.public_url:
        return Finding(State.OK, "public URL", config.url)
    said = f"not set, so links begin with {config.url}, which people behind the proxy can't open"
    return Finding(State.WARNING, "public URL", f"{said}; set it with --public-url")


def _sign_in(config: Config) -> Finding:
    issuer = sign_in_issuer(config)
    if issuer is None:
        return Finding(State.OK, "sign-in", "with passwords and passkeys")
    try:
        issuer.endpoints()
    except WardkeyError as error:
        return Finding(State.FAULT, "sign-in", error.detail)
    said = f"{issuer.issuer} is reachable; the redirect URI is {issuer.redirect_uri}"
    return Finding(State.OK, "sign-in", said)


def _certificate(config: Config) -> Iterator[Finding]:
    try:
        check_tls(config)
        chain = x509.load_pem_x509_certificates(Path(config.tls_cert).read_bytes())
    except WardkeyError as error:
        yield Finding(State.FAULT, "certificate", error.detail)
        return
    except ValueError as error:
        yield Finding(State.FAULT, "certificate", f"{config.tls_cert} cannot be read: {error}")
        return
    yield _validity(chain)
    mode = stat.S_IMODE(Path(config.tls_key).stat().st_mode)
    if mode & 0o007:
        said = f"every user can access it ({mode:04o}); run chmod o= {config.tls_key}"
        yield Finding(State.WARNING, "TLS key", said)
    else:
        yield Finding(State.OK, "TLS key", f"matches the certificate, {mode:04o}")


def _validity(chain: list[x509.Certificate]) -> Finding:
    """Check when the whole chain is valid: from the latest start to the earliest end."""
    now = wall_clock()
    begin = max(int(item.not_valid_before_utc.timestamp() * 1000) for item in chain)
    end = min(int(item.not_valid_after_utc.timestamp() * 1000) for item in chain)
    if end <= now:
        return Finding(State.FAULT, "certificate", f"expired at {iso(end)}; renew it")
    if begin > now:
        said = f"not valid before {iso(begin)}; set the clock, or wait until then"
        return Finding(State.FAULT, "certificate", said)
    said = f"valid until {iso(end)}"
    if end <= now + 14 * DAY_MS:
        return Finding(State.WARNING, "certificate", f"{said}; renew it and run `wardkey reload`")
    return Finding(State.OK, "certificate", said)


def _clock(now: int) -> Finding:
    if now < _MIN_CLOCK_MS:
        return Finding(State.FAULT, "clock", f"shows {iso(now)}; set it, or use NTP")
    return Finding(State.OK, "clock", iso(now))


def _at_rest(config: Config) -> Finding:
    if config.embedded:
        return Finding(State.OK, "encryption at rest", "Wardkey encrypts the database's files")
    if config.database_encrypted_by_operator:
        return Finding(
            State.OK, "encryption at rest", "PostgreSQL's disk is encrypted, as you confirmed"
        )
    return Finding(
        State.WARNING, "encryption at rest",
        "Wardkey does not encrypt PostgreSQL's files; encrypt its disk, then confirm that with "
        "--database-encrypted-by-operator",
    )  # fmt: skip


def _database(database: Database, config: Config) -> Iterator[Finding]:
    facts = storage_facts(database)
    if database.kind == "postgresql":
        yield _drift(facts.clock - wall_clock())
    elif facts.journal_mode == "wal":
        yield Finding(State.OK, "journal", "wal")
    else:
        said = f"{facts.journal_mode}; SQLite cannot use WAL here: use a local disk"
        yield Finding(State.FAULT, "journal", said)
    pending = facts.migrations.pending
    if pending:
        said = f"pending: {', '.join(pending)}; the next `wardkey up` runs them"
        yield Finding(State.WARNING, "migrations", said)
        return
    yield Finding(State.OK, "migrations", f"at {facts.migrations.current}")
    yield _usage(database)
    states = check_peppers(database)
    yield from _peppers(states)
    if all(item.opens for item in states):
        open_vault(database)
        if config.oidc_organization:
            yield _newcomers(database, config.oidc_organization)
        yield from _forward_auth(database)
        yield from _audit(database)
    else:
        yield Finding(State.WARNING, "audit", "not checked, because not every pepper opens")


def _drift(ms: int) -> Finding:
    said = f"PostgreSQL's clock is {abs(ms)} ms {'ahead of' if ms > 0 else 'behind'} this one"
    if abs(ms) > _MAX_CLOCK_DRIFT_MS:
        return Finding(State.WARNING, "clock", f"{said}; use NTP on both")
    return Finding(State.OK, "clock", said)


def _usage(database: Database) -> Finding:
    try:
        check_usage(database)
    except WardkeyError as error:
        return Finding(
            State.WARNING, "usage database",
            f"{error.code}: {error.detail} Verification works without it.",
        )  # fmt: skip
    return Finding(State.OK, "usage database", "opens")


def _peppers(states: list[PepperState]) -> Iterator[Finding]:
    for item in states:
        if not item.opens:
            yield Finding(
                State.FAULT, "peppers",
                f"version {item.version} does not open with this master key, but {item.rows:,} "
                "stored secrets need it; restore a backup",
            )  # fmt: skip
    if all(item.opens for item in states):
        old = sum(item.rows for item in states if not item.current)
        said = f"{len(states)} opened; {old:,} stored secrets are hashed under an older one"
        if old:
            said += "; those of keys are rehashed at their next use"
        yield Finding(State.OK, "peppers", said)


def _newcomers(database: Database, reference: str) -> Finding:
    with database.read() as tx:
        try:
            organization = find(tx, operator(), reference)
        except OrganizationNotFound:
            said = f"there is no organization {reference}, so new users can't join by signing in"
            return Finding(State.FAULT, "newcomers", f"{said}; set oidc_organization to an id")
    if reference != organization.id:
        said = f"join {organization.name}, found by a slug that its owner can change"
        return Finding(State.WARNING, "newcomers", f"{said}; set {organization.id} instead")
    return Finding(State.OK, "newcomers", f"join {organization.name}")


def _forward_auth(database: Database) -> Iterator[Finding]:
    """Report the mistakes in proxies' requests of the last 24 hours."""
    now = wall_clock()
    with database.read() as tx:
        mistakes = list_mistakes(tx, operator(), now - DAY_MS)
        count = len(list_all(tx, operator()))
    for item in mistakes:
        said = f"{item.what} It sent the request from {item.address}, last at {iso(item.at)}."
        yield Finding(State.WARNING, "forward-auth", said)
    if not mistakes:
        several = "each proxy's URL must name one, or organization=any"
        rule = "proxies' URLs don't have to name it" if count == 1 else several
        yield Finding(State.OK, "forward-auth", f"organizations: {count}, so {rule}")


def _audit(database: Database) -> Iterator[Finding]:
    with database.read() as tx:
        chains = list_chains(tx, operator())
    events, broken = 0, False
    for name, org_id in chains:
        count, breaks = verify_chain(database, operator(), org_id)
        events += count
        if breaks:
            broken = True
            yield Finding(
                State.FAULT, "audit",
                f"the chain of {name} is broken at event {breaks[0].seq}: {breaks[0].what}; "
                f"`wardkey audit verify --org {org_id}` lists every break",
            )  # fmt: skip
    if not broken:
        said = f"{len(chains)} chains with {events:,} events, all intact"
        yield Finding(State.OK, "audit", said)
