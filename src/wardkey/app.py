"""The composition root: opens a deployment from its Config and builds the ASGI application."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from multiprocessing import parent_process
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread
from fastapi import FastAPI

from wardkey import __version__
from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging.freed_client_ids import forget_freed, free_unused
from wardkey.adapters.broker import BrokerKeys
from wardkey.adapters.broker_link import BrokerLink
from wardkey.adapters.fetch import Fetch
from wardkey.adapters.key_sets import KeySets
from wardkey.adapters.publishers import Publishers
from wardkey.api import (
    acl,
    audit,
    client_ids,
    clients,
    docs,
    exchange,
    health,
    keys,
    metrics,
    oauth,
    organization,
    people,
    presence,
    providers,
    retained,
    rotations,
    scopes,
    sessions,
    tokens,
    verify,
)
from wardkey.bridge import emqx, mosquitto, publish, rabbitmq, vernemq
from wardkey.bridge.hooks import Hooks
from wardkey.config import Config, load_config
from wardkey.dashboard.pages.account import invitations, sign_in, single_sign_on
from wardkey.dashboard.pages.account import passkeys as passkeys_page
from wardkey.dashboard.pages.keys import key as key_page
from wardkey.dashboard.pages.keys import keys as keys_page
from wardkey.dashboard.pages.keys import scopes as scopes_page
from wardkey.dashboard.pages.messaging import acl as acl_page
from wardkey.dashboard.pages.messaging import client as client_page
from wardkey.dashboard.pages.messaging import clients as clients_page
from wardkey.dashboard.pages.messaging import grants as grants_page
from wardkey.dashboard.pages.messaging import providers as providers_page
from wardkey.dashboard.pages.messaging import topics as topics_page
from wardkey.dashboard.pages.organization import audit_log, settings
from wardkey.dashboard.pages.organization import members as members_page
from wardkey.dashboard.pages.organization import organizations as organizations_page
from wardkey.dashboard.pages.overview import overview
from wardkey.dashboard.pages.overview import usage as usage_page
from wardkey.dashboard.shell import assets, not_found
from wardkey.db.engine import Database
from wardkey.db.leases import CommitBarrier, VerifierIdentity, deregister, heartbeat, prune_dead
from wardkey.db.locks import hold_database, hold_folder
from wardkey.db.maintenance import (
    clean_up,
    clean_up_grants,
    clean_up_usage,
    rehash,
    rehash_passwords,
)
from wardkey.db.master_key import open_vault
from wardkey.deployment import open_storage, sign_in_issuer
from wardkey.domain.errors import WardkeyError
from wardkey.logs import configure_logging
from wardkey.services.mqtt_login import MqttLogins
from wardkey.services.session_enforcer import SessionEnforcer
from wardkey.services.session_removal import SessionRemover
from wardkey.services.throttle import Throttle
from wardkey.services.token_exchange import TokenExchange
from wardkey.verify.pending import MERGE_MS, merge_pending
from wardkey.verify.shared_rates import SharedRates
from wardkey.verify.sqlite_freshness import SqliteFreshness
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier
from wardkey.web import problems
from wardkey.web.context import AppContext
from wardkey.web.request_limits import Limits

log = logging.getLogger(__name__)

FLUSH_S = 0.5
# How long startup waits for the local broker; after that it continues, and the link keeps retrying.
_BROKER_S = 5
CLEAN_UP_TICKS = 120
CLEAN_UP_USAGE_TICKS = 7200


def create_app() -> FastAPI:
    """Return the application of one worker process, configured by the environment.

    `wardkey up` has created the deployment; this only opens it.
    """
    config = load_config(os.environ)
    configure_logging(config)
    # In the order of the OpenAPI document.
    documented = (
        keys,
        rotations,
        scopes,
        verify,
        clients,
        acl,
        sessions,
        client_ids,
        presence,
        retained,
        publish,
        providers,
        exchange,
        oauth,
        tokens,
        organization,
        people,
        audit,
    )
    api = (*documented, health, metrics, docs, emqx, mosquitto, rabbitmq, vernemq)
    # The last answers dashboard paths that match no page.
    pages = (
        assets,
        invitations,
        sign_in,
        single_sign_on,
        overview,
        usage_page,
        audit_log,
        keys_page,
        key_page,
        clients_page,
        client_page,
        acl_page,
        topics_page,
        providers_page,
        grants_page,
        members_page,
        scopes_page,
        settings,
        organizations_page,
        passkeys_page,
        not_found,
    )
    app = FastAPI(
        title="Wardkey",
        version=__version__,
        summary="API keys whose revocation has taken effect when the call returns.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(config),
        # A path with an extra slash is a different path; a redirect would lose the body.
        redirect_slashes=False,
        # `include_router` would build each route again, which takes half a second of CPU.
        routes=[route for module in (*api, *pages) for route in module.router.routes],
    )
    problems.install(app)
    app.add_middleware(Limits)
    return app


def _lifespan(config: Config) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with (
            hold_folder(config.data_dir, alone=False),
            open_storage(config) as database,
            hold_database(database, alone=False),
        ):
            open_vault(database)
            usage = Usage(database)
            identity = VerifierIdentity.local_process(database.clock(), config.max_staleness * 1000)
            verifier = Verifier(database, usage, identity, config.directory_memory)
            verifier.live = config.workers
            if database.kind == "sqlite":
                file = Path(database.url.database or "").with_name("rates")
            else:
                file = Path(config.data_dir) / "rates"
                verifier.shared_parts = config.workers
            verifier.shared_rates = SharedRates(file)
            commit_barrier = CommitBarrier(database, observe=verifier.metrics.observe)
            if not isinstance(verifier.directory.freshness, SqliteFreshness):
                verifier.directory.freshness.metrics = verifier.snapshot
            ctx = AppContext(
                runner=Runner(database, commit_barrier),
                verifier=verifier,
                usage=usage,
                throttle=Throttle(config.data_dir / "attempts"),
                public_url=config.url,
                mqtt_url=config.mqtt_url,
                websocket_url=config.websocket_url,
                access_log=config.access_log,
                proxies=config.proxies,
                key_headers=config.extra_key_headers,
                metrics_token=config.metrics_token,
                token_exchange=TokenExchange(
                    database,
                    verifier,
                    KeySets(Fetch(config.private_issuers).get),
                    config.private_issuers,
                ),
                sign_in_issuer=sign_in_issuer(config),
                sign_in_policy=config.sign_in_policy,
                link=(link := _link(config, database)),
                publishers=None if link is None else _publishers(config, link, identity),
            )
            enforcer = None
            if link is not None:
                loop = asyncio.get_running_loop()
                assert ctx.publishers is not None  # noqa: S101 - made with the link
                remover = SessionRemover(database, ctx.publishers, loop)
                ctx.session_remover = remover
                enforcer = SessionEnforcer(database, verifier, link, ctx.rights, loop, remover)
                ctx.runner.end_sessions = enforcer.disconnect_affected
            app.state.context = ctx
            # The local broker and hooks share it, so failed attempts are counted together.
            watch = None if enforcer is None else enforcer.watch
            logins = MqttLogins(
                database,
                ctx.throttle,
                ctx.verified,
                ctx.rights,
                watch=watch,
                remover=ctx.session_remover,
            )
            app.state.hooks = Hooks(ctx, logins)
            app.state.hot_routes = verify.FAST_ROUTES | publish.FAST_ROUTES | exchange.FAST_ROUTES
            stop = threading.Event()
            ticker = threading.Thread(
                target=_run_maintenance,
                args=(ctx, logins, config.workers, stop),
                name="wardkey-ticker",
            )
            ticker.start()
            _tune_gc()
            messaging = asyncio.create_task(_messaging(ctx, logins, enforcer))
            try:
                # The local broker needs a worker for logins; ready means that both work.
                if link is not None and config.broker_dir:
                    await link.wait_until_open(_BROKER_S)
                yield
            finally:
                messaging.cancel()
                await asyncio.gather(messaging, return_exceptions=True)
                stop.set()
                await anyio.to_thread.run_sync(ticker.join)
                ctx.verifier.directory.close()

    return lifespan


def _link(config: Config, database: Database) -> BrokerLink | None:
    if not config.messaging or not config.broker:
        return None
    keys = BrokerKeys(database.vault.broker_root)
    tls = _broker_tls(config) if config.broker.startswith("tls:") else None
    return BrokerLink(config.brokers, keys, database.clock, tls)


def _publishers(config: Config, link: BrokerLink, identity: VerifierIdentity) -> Publishers:
    urls = [urlsplit(url) for url in config.mqtt_brokers]
    tls = _broker_tls_factory(config) if urls[0].scheme == "mqtts" else None
    addresses = [(url.hostname or "", url.port or 0) for url in urls]
    folder = Path(config.broker_dir) if config.broker_dir else None
    return Publishers(link, addresses, identity.id, tls, folder)


def _broker_tls_factory(config: Config) -> Callable[[], ssl.SSLContext]:
    """Return a factory of TLS contexts; for a local broker it reads a renewed certificate."""
    if config.broker_dir:
        return partial(_broker_tls, config)
    # Loading all the system's certificates takes 50 ms, so they are loaded once.
    tls = _broker_tls(config)
    return lambda: tls


def _broker_tls(config: Config) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=config.broker_ca or None)
    if config.broker_ca and config.broker_ca == config.tls_cert:
        # The broker uses exactly this certificate, so its host name doesn't matter, and the file
        # need not contain the issuer.
        tls.check_hostname = False
        tls.verify_flags = ssl.VERIFY_X509_PARTIAL_CHAIN
    return tls


async def _messaging(ctx: AppContext, logins: MqttLogins, enforcer: SessionEnforcer | None) -> None:
    """Answer the broker's login requests and enforce changes on sessions, until cancelled."""
    link, publishers = ctx.link, ctx.publishers
    if link is None or publishers is None or enforcer is None:
        return
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(link.keep(logins.judge))
            group.create_task(enforcer.follow())
            group.create_task(enforcer.end_expired())
            if enforcer.remover is not None:
                group.create_task(enforcer.remover.run())
    finally:
        await publishers.close()
        await link.close()


def _tune_gc() -> None:
    """Freeze startup objects and raise the GC thresholds.

    Reference counting frees nearly all objects of a request.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _run_maintenance(
    ctx: AppContext, logins: MqttLogins, workers: int, stop: threading.Event
) -> None:
    """Write counters, audit events and rehashes twice a second, and once more when stopping."""
    database, supervisor, ticks = ctx.runner.database, parent_process(), 0
    while True:
        last = stop.wait(FLUSH_S)
        if supervisor is not None and not supervisor.is_alive() and not last:
            # The supervisor was killed, so nothing else would stop this worker.
            os.kill(os.getpid(), signal.SIGTERM)
        _run_job(ctx.usage.flush)
        _run_job(logins.write_connected)
        # Also at the start, for uses that a killed process left behind.
        _run_job(partial(merge_pending, database, MERGE_MS if ticks and not last else 0))
        _run_job(partial(ctx.runner.write_aggregated_events, everything=last))
        _run_job(partial(_rehash, ctx))
        _run_job(partial(_update_live_count, ctx, workers))
        if ticks % CLEAN_UP_TICKS == 0:
            _run_job(partial(clean_up, database))
            if database.kind == "postgresql":
                _run_job(partial(prune_dead, database))
        if ticks % CLEAN_UP_USAGE_TICKS == 0:
            _run_job(partial(clean_up_usage, database))
            if ctx.link is None:
                # With a broker, `SessionRemover` does this, after it has removed the sessions.
                _run_job(partial(free_unused, database))
                _run_job(partial(forget_freed, database))
            _run_job(partial(clean_up_grants, database))
        ticks += 1
        if last:
            if database.kind == "sqlite":
                _run_job(partial(deregister, database, ctx.verifier.identity))
            return


def _update_live_count(ctx: AppContext, workers: int) -> None:
    """Record this verifier's heartbeat, and update how many share the rate limits."""
    verifier = ctx.verifier
    freshness = verifier.directory.freshness
    if not isinstance(freshness, SqliteFreshness):
        verifier.live = max(workers, freshness.live)
    else:
        freshness.check()
        metrics = verifier.snapshot()
        live = heartbeat(ctx.runner.database, verifier.identity, metrics)
        verifier.live = max(workers, live)


def _rehash(ctx: AppContext) -> None:
    """Store the new digests and evict the old ones, so they aren't queued for rehashing again."""
    digests = ctx.verifier.take_rehashes()
    rehash(ctx.runner.database, digests)
    for kid in digests:
        ctx.verifier.directory.forget(kid)
    rehash_passwords(ctx.runner.database, ctx.verified.take_rehashes())


def _run_job(job: Callable[[], None]) -> None:
    """Run a background job; a job keeps what failed and retries it at its next run."""
    try:
        job()
    except WardkeyError as error:
        log.warning("%s: %s", error.code, error.detail)
    except Exception:
        log.exception("a background job failed")
