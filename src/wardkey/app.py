"""The composition root: a Config becomes an open deployment and its ASGI application."""

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
# How long a start waits for the broker beside it; without it, it goes on and tries again.
_BROKER_S = 5
CLEAN_UP_TICKS = 120
CLEAN_UP_USAGE_TICKS = 7200


def create_app() -> FastAPI:
    """Return the application of one worker process, its settings read from the environment.

    The deployment was made by `wardkey up` before; this only opens it.
    """
    config = load_config(os.environ)
    configure_logging(config)
    # As the document lists them.
    described = (
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
    doors = (*described, health, metrics, docs, emqx, mosquitto, rabbitmq, vernemq)
    # A path in the dashboard that no page has is answered by the last.
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
        summary="API keys whose revocations are true when they return.",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(config),
        # A path with another slash is another path; a redirect would lose the body.
        redirect_slashes=False,
        # `include_router` would make each route a second time, for half a second of CPU.
        routes=[route for module in (*doors, *pages) for route in module.router.routes],
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
            me = VerifierIdentity.local_process(database.clock(), config.max_staleness * 1000)
            verifier = Verifier(database, usage, me, config.directory_memory)
            verifier.live = config.workers
            if database.kind == "sqlite":
                file = Path(database.url.database or "").with_name("rates")
            else:
                file = Path(config.data_dir) / "rates"
                verifier.shared_parts = config.workers
            verifier.shared_rates = SharedRates(file)
            confirming = CommitBarrier(database, observe=verifier.metrics.observe)
            if not isinstance(verifier.directory.freshness, SqliteFreshness):
                verifier.directory.freshness.metrics = verifier.snapshot
            context = AppContext(
                runner=Runner(database, confirming),
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
                exchanges=TokenExchange(
                    database,
                    verifier,
                    KeySets(Fetch(config.private_issuers).get),
                    config.private_issuers,
                ),
                sign_in_issuer=sign_in_issuer(config),
                welcome=config.welcome,
                link=(link := _link(config, database)),
                publishers=None if link is None else _publishers(config, link, me),
            )
            enforcer = None
            if link is not None:
                loop = asyncio.get_running_loop()
                assert context.publishers is not None  # noqa: S101 - made with the link
                remover = SessionRemover(database, context.publishers, loop)
                context.session_remover = remover
                enforcer = SessionEnforcer(database, verifier, link, context.rights, loop, remover)
                context.runner.end_sessions = enforcer.disconnect_affected
            app.state.context = context
            # One of them for the broker beside this and for others, so that guesses count together.
            watch = None if enforcer is None else enforcer.watch
            logins = MqttLogins(
                database,
                context.throttle,
                context.verified,
                context.rights,
                watch=watch,
                remover=context.session_remover,
            )
            app.state.hooks = Hooks(context, logins)
            app.state.hot_routes = verify.FAST_ROUTES | publish.FAST_ROUTES | exchange.FAST_ROUTES
            stop = threading.Event()
            ticker = threading.Thread(
                target=_run_maintenance,
                args=(context, logins, config.workers, stop),
                name="wardkey-ticker",
            )
            ticker.start()
            _tune_gc()
            messaging = asyncio.create_task(_messaging(context, logins, enforcer))
            try:
                # The broker beside this waits for a worker; ready, one can log in there too.
                if link is not None and config.broker_dir:
                    await link.wait_until_open(_BROKER_S)
                yield
            finally:
                messaging.cancel()
                await asyncio.gather(messaging, return_exceptions=True)
                stop.set()
                await anyio.to_thread.run_sync(ticker.join)
                context.verifier.directory.close()

    return lifespan


def _link(config: Config, database: Database) -> BrokerLink | None:
    if not config.messaging or not config.broker:
        return None
    keys = BrokerKeys(database.vault.broker_root)
    tls = _trust(config) if config.broker.startswith("tls:") else None
    return BrokerLink(config.brokers, keys, database.clock, tls)


def _publishers(config: Config, link: BrokerLink, me: VerifierIdentity) -> Publishers:
    parts = [urlsplit(url) for url in config.mqtt_brokers]
    tls = _trusting(config) if parts[0].scheme == "mqtts" else None
    addresses = [(part.hostname or "", part.port or 0) for part in parts]
    folder = Path(config.broker_dir) if config.broker_dir else None
    return Publishers(link, addresses, me.id, tls, folder)


def _trusting(config: Config) -> Callable[[], ssl.SSLContext]:
    """Return what gives the context of a connection; a renewed certificate is read each time."""
    if config.broker_dir:
        return partial(_trust, config)
    # With all the system's certificates this takes 50 ms.
    trust = _trust(config)
    return lambda: trust


def _trust(config: Config) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=config.broker_ca or None)
    if config.broker_ca and config.broker_ca == config.tls_cert:
        # The broker shows the very certificate that is named here, whatever its name, and its
        # file need not hold who signed it.
        tls.check_hostname = False
        tls.verify_flags = ssl.VERIFY_X509_PARTIAL_CHAIN
    return tls


async def _messaging(
    context: AppContext, logins: MqttLogins, enforcer: SessionEnforcer | None
) -> None:
    """Answer the broker's logins and keep sessions to what is allowed, until cancelled."""
    link, publishers = context.link, context.publishers
    if link is None or publishers is None or enforcer is None:
        return
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(link.keep(logins.judge))
            group.create_task(enforcer.follow())
            group.create_task(enforcer.end_expired())
            if enforcer.freeing is not None:
                group.create_task(enforcer.freeing.run())
    finally:
        await publishers.close()
        await link.close()


def _tune_gc() -> None:
    """Let the collector look at young objects in larger lots, and never again at what is loaded.

    Nearly everything that a verdict makes is freed by its reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _run_maintenance(
    context: AppContext, logins: MqttLogins, workers: int, stop: threading.Event
) -> None:
    """Write counters, notes and rehashes twice a second, and a last time when stopping."""
    database, watcher, ticks = context.runner.database, parent_process(), 0
    while True:
        last = stop.wait(FLUSH_S)
        if watcher is not None and not watcher.is_alive() and not last:
            # The process that watches over the workers was killed; nobody would stop this one.
            os.kill(os.getpid(), signal.SIGTERM)
        _run_job(context.usage.flush)
        _run_job(logins.write_connected)
        # At the start too, for what a killed process left.
        _run_job(partial(merge_pending, database, MERGE_MS if ticks and not last else 0))
        _run_job(partial(context.runner.write_aggregated_events, everything=last))
        _run_job(partial(_rehash, context))
        _run_job(partial(_update_live_count, context, workers))
        if ticks % CLEAN_UP_TICKS == 0:
            _run_job(partial(clean_up, database))
            if database.kind == "postgresql":
                _run_job(partial(prune_dead, database))
        if ticks % CLEAN_UP_USAGE_TICKS == 0:
            _run_job(partial(clean_up_usage, database))
            if context.link is None:
                # With a broker of ours its sessions go first.
                _run_job(partial(free_unused, database))
                _run_job(partial(forget_freed, database))
            _run_job(partial(clean_up_grants, database))
        ticks += 1
        if last:
            if database.kind == "sqlite":
                _run_job(partial(deregister, database, context.verifier.identity))
            return


def _update_live_count(context: AppContext, workers: int) -> None:
    """Say that this verifier is here, and learn with how many it shares the rate limits."""
    verifier = context.verifier
    freshness = verifier.directory.freshness
    if not isinstance(freshness, SqliteFreshness):
        verifier.live = max(workers, freshness.live)
    else:
        freshness.check()
        told = verifier.snapshot()
        verifier.live = max(workers, heartbeat(context.runner.database, verifier.identity, told))


def _rehash(context: AppContext) -> None:
    """Store new digests; who has them in memory reads them again, or would note them for ever."""
    taken = context.verifier.take_rehashes()
    rehash(context.runner.database, taken)
    for kid in taken:
        context.verifier.directory.forget(kid)
    rehash_passwords(context.runner.database, context.verified.take_rehashes())


def _run_job(job: Callable[[], None]) -> None:
    """Run a job beside the requests; what failed is kept by the job and tried again."""
    try:
        job()
    except WardkeyError as failure:
        log.warning("%s: %s", failure.code, failure.detail)
    except Exception:
        log.exception("a job beside the requests failed")
