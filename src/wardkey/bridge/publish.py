"""`POST /publish`: publishes MQTT messages over HTTP, acknowledged by the broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.actions.core.idempotency import Retry
from wardkey.actions.grants.logins import find_grant
from wardkey.actions.messaging.publications import Claim, claim, settle
from wardkey.adapters.publishers import Publishers
from wardkey.bridge import described
from wardkey.bridge.wire import Message, PublishRequest, decode_publish, to_message
from wardkey.domain import errors
from wardkey.domain.acl import Action, Actor, ActorKind
from wardkey.domain.credentials import trim_field
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import KeyType, Permission
from wardkey.domain.principal import Principal
from wardkey.domain.rule_set import RuleSet
from wardkey.web.caller import (
    Caller,
    caller_in_organization,
    has_simple_credential,
    is_caller_cached,
)
from wardkey.web.context import AppContext, CurrentContext
from wardkey.web.cors import CORS_HEADERS, preflight_headers
from wardkey.web.fast_path import FastRoute
from wardkey.web.problems import (
    problem_body,
    problem_responses,
    raw_problem_response,
    require_json_body,
    status_of,
)
from wardkey.web.raw_http import RawRequest, RawResponse, header_lines

router = APIRouter(tags=["publish"])
log = logging.getLogger(__name__)

_JSON = "application/json"
_GRANT = b"x-wardkey-grant"
_CORS = header_lines(CORS_HEADERS)
_PREFLIGHT = preflight_headers("POST", "Idempotency-Key", "X-Wardkey-Grant")
_UNSENT = (errors.BrokerUnreachable, errors.BrokerFull)
_encoder = msgspec.json.Encoder()
_NO_RULES = RuleSet(())


@dataclass(frozen=True, slots=True)
class Prepared:
    """The messages to publish, or the error of each; `is_batch` decides the response's form."""

    by: Principal
    items: Sequence[Message | errors.WardkeyError]
    is_batch: bool
    claim: Claim | None


@router.options("/publish", include_in_schema=False)
@router.options("/v1/publish", include_in_schema=False)
def preflight() -> Response:
    """Answer a CORS preflight; it carries no key, so the origin is checked on the request."""
    return Response(status_code=204, headers=_PREFLIGHT)


@router.post(
    "/publish",
    openapi_extra=described.REQUEST,
    responses={
        **problem_responses(
            errors.InvalidTopic,
            errors.InvalidPayload,
            errors.PayloadTooLarge,
            errors.TooManyItems,
            errors.PublishDenied,
            errors.InvalidToken,
            errors.NotPermitted,
            errors.IdempotencyKeyReused,
            errors.WeakIdempotencyKey,
            errors.BrokerUnreachable,
            errors.BrokerFull,
            errors.PublishUnconfirmed,
            errors.MessagingOff,
            body=True,
        ),
        200: described.RESPONSE,
    },
    response_class=Response,
)
@router.post("/v1/publish", include_in_schema=False)
async def publish(request: Request, ctx: CurrentContext) -> Response:
    """Publish up to 1,000 messages to MQTT; the response is sent once the broker has them."""
    raw = RawRequest.of(request, await request.body())
    started_at = perf_counter()
    out = await _publish(raw, ctx)
    return _finish(out, raw, ctx, started_at).response()


def publish_on_fast_path(
    request: RawRequest, ctx: AppContext
) -> RawResponse | asyncio.Future[RawResponse] | None:
    """Publish one ordinary message without a thread; None for any other request.

    If it must wait for a connection or the database, it waits in a task.
    """
    if (
        ctx.publishers is None
        or not has_simple_credential(request, ctx)
        or b"idempotency-key" in request.named
        or _GRANT in request.named
        or request.body.lstrip()[:1] == b"["
    ):
        return None
    started_at = perf_counter()
    try:
        by = _authorize(request, ctx).by
        item = decode_publish(request.body)
        assert not isinstance(item, list)  # noqa: S101 - checked above
        job = _PublishJob(request, ctx, by, item, started_at)
        return _send_now(job, ctx.publishers) or asyncio.create_task(_publish_waiting(job))
    except errors.WardkeyError as error:
        out = raw_problem_response(error, request.request_id)
    except Exception:
        log.exception("request %s failed", request.request_id)
        out = raw_problem_response(errors.InternalError(), request.request_id)
    return _finish(out, request, ctx, started_at)


@dataclass(frozen=True, slots=True)
class _PublishJob:
    """A request with one message; its handling began at `started_at`."""

    request: RawRequest
    ctx: AppContext
    by: Principal
    item: PublishRequest
    started_at: float

    def respond(self, result: str | errors.WardkeyError) -> RawResponse:
        """Return the response: the message's id, or the error."""
        if isinstance(result, errors.WardkeyError):
            out = raw_problem_response(result, self.request.request_id)
        else:
            out = _accepted(result)
        return _finish(out, self.request, self.ctx, self.started_at)


def _finish(
    out: RawResponse, request: RawRequest, ctx: AppContext, started_at: float
) -> RawResponse:
    out.lines = _CORS
    ctx.verifier.metrics.observe(request.route, perf_counter() - started_at)
    return out


def _send_now(
    job: _PublishJob, publishers: Publishers
) -> RawResponse | asyncio.Future[RawResponse] | None:
    """Send a message without waiting; None, with nothing sent, if it would have to wait."""
    by, ctx, rules = job.by, job.ctx, _NO_RULES
    if by.key_type is KeyType.PUBLISHABLE:
        cached = ctx.rights.get_cached(by.scope, ctx.verifier.directory.revision())
        if cached is None:
            return None
        rules = cached
    if not publishers.is_ready(by.scope):
        return None
    message = _checked_message(ctx, by, rules, job.item)
    message_id = new_id("msg", ctx.runner.database.clock())
    if message.qos == 0:
        publishers.send(by.scope, message.topic, message.payload, None, retain=message.retain)
        return job.respond(message_id)
    response: asyncio.Future[RawResponse] = asyncio.get_running_loop().create_future()

    def done(error: errors.WardkeyError | None) -> None:
        response.set_result(job.respond(error or message_id))

    publishers.send(by.scope, message.topic, message.payload, done, retain=message.retain)
    return response


async def _publish_waiting(job: _PublishJob) -> RawResponse:
    """Publish a message that must wait for its rules or its connection."""
    ctx = job.ctx
    try:
        assert ctx.publishers is not None  # noqa: S101 - the caller checked
        rules = await run_in_threadpool(_rules, ctx, job.by)
        message = _checked_message(ctx, job.by, rules, job.item)
        now = ctx.runner.database.clock()
        return job.respond(await _publish_one(ctx.publishers, job.by, message, now))
    except errors.WardkeyError as error:
        return job.respond(error)
    except Exception:
        log.exception("request %s failed", job.request.request_id)
        return job.respond(errors.InternalError())


async def _publish(request: RawRequest, ctx: AppContext) -> RawResponse:
    try:
        if ctx.publishers is None:
            raise errors.MessagingOff
        prepared = await run_in_threadpool(_prepare, request, ctx)
        if prepared.claim is not None and prepared.claim.answer is not None:
            status, _, body = prepared.claim.answer.partition(b" ")
            return RawResponse(int(status), body, _JSON)
        now = ctx.runner.database.clock()
        results = await asyncio.gather(
            *(_publish_one(ctx.publishers, prepared.by, item, now) for item in prepared.items)
        )
        if prepared.is_batch:
            out = RawResponse(200, _batch(results, request.request_id), _JSON)
        elif isinstance(results[0], errors.WardkeyError):
            out = raw_problem_response(results[0], request.request_id)
        else:
            out = _accepted(results[0])
        if prepared.claim is not None:
            unsent = all(isinstance(result, _UNSENT) for result in results)
            stored = None if unsent else b"%d %b" % (out.status, out.body)
            await run_in_threadpool(settle, ctx.runner.database, prepared.claim, stored)
    except errors.WardkeyError as error:
        return raw_problem_response(error, request.request_id)
    return out


def _authorize(request: RawRequest, ctx: AppContext) -> Caller:
    """Return the caller; raises `NotPermitted` if it may not publish."""
    require_json_body(request)
    caller = caller_in_organization(request, ctx)
    try:
        caller.by.require(Permission.PUBLISH)
    except errors.Forbidden as error:
        ctx.runner.note_refusal("publish", caller.by, error)
        raise
    return caller


def _prepare(request: RawRequest, ctx: AppContext) -> Prepared:
    """Identify the caller, and parse and check all messages before any is sent."""
    caller = _authorize(request, ctx)
    by = caller.by
    decoded = decode_publish(request.body)
    is_batch = isinstance(decoded, list)
    rules, grant_actor = _rules(ctx, by), _grant_actor(request, ctx, by)
    items: list[Message | errors.WardkeyError] = []
    for item in decoded if isinstance(decoded, list) else [decoded]:
        try:
            items.append(
                _checked_message(
                    ctx, by, rules, item, grant_actor=grant_actor, is_noted=not is_batch
                )
            )
        except errors.WardkeyError as error:
            if not is_batch:
                raise
            items.append(error)
    idempotency_claim = None
    retry_key = request.header(b"idempotency-key")
    if retry_key:
        unconfirmed = errors.PublishUnconfirmed()
        body = _encoder.encode(problem_body(unconfirmed, request.request_id))
        idempotency_claim = claim(
            ctx.runner.database,
            by,
            Retry(retry_key, "POST /publish", request.body, caller.credential),
            b"%d %b" % (status_of(errors.PublishUnconfirmed), body),
        )
    return Prepared(by, items, is_batch, idempotency_claim)


def _rules(ctx: AppContext, by: Principal) -> RuleSet:
    """Return the rules that apply to a caller; they apply only to publishable keys."""
    if by.key_type is not KeyType.PUBLISHABLE:
        return _NO_RULES
    with ctx.runner.database.read() as tx:
        return ctx.rights.rules(tx, by.scope)


def _grant_actor(request: RawRequest, ctx: AppContext, by: Principal) -> Actor | None:
    """Return the user of the grant sent beside the key, if any; raises `InvalidToken`."""
    password = trim_field(request.header(_GRANT))
    if not password:
        return None
    grant = find_grant(ctx.runner.database, password)
    if grant is None or (grant.org_id, grant.environment) != by.scope:
        raise errors.InvalidToken(
            "The grant in X-Wardkey-Grant has ended, or belongs to another organization or "
            "environment; exchange a token for a new grant."
        )
    return grant.actor("")


def _checked_message(
    ctx: AppContext,
    by: Principal,
    rules: RuleSet,
    item: PublishRequest,
    *,
    grant_actor: Actor | None = None,
    is_noted: bool = True,
) -> Message:
    """Return a message that the caller may publish.

    `grant_actor` is the user of a grant sent with a publishable key; the user's permission is
    enough. Raises `PublishDenied`, and the errors of `to_message`.
    """
    message = to_message(item)
    if by.key_type is not KeyType.PUBLISHABLE:
        return message
    decision = rules.decide(
        Actor(ActorKind.PUBLISHABLE_KEY, by.org_id), Action.PUBLISH, message.topic
    )
    if decision.allowed or (
        grant_actor is not None and rules.decide(grant_actor, Action.PUBLISH, message.topic).allowed
    ):
        return message
    reason = "no rule for publishable keys allows it"
    if decision.rule is not None:
        rule = decision.rule
        reason = f"rule {rule.id} ({rule.effect} {rule.action} {rule.filter}) denies it"
    error = errors.PublishDenied(
        f"Publishing to {message.topic} is denied: {reason}.", field="topic"
    )
    if is_noted:
        ctx.runner.note_refusal("publish", by, error)
    raise error


async def _publish_one(
    publishers: Publishers, by: Principal, item: Message | errors.WardkeyError, now: int
) -> str | errors.WardkeyError:
    """Return the message's id, or the error if it was not published."""
    if isinstance(item, errors.WardkeyError):
        return item
    try:
        await publishers.publish(by.scope, item.topic, item.payload, item.qos, retain=item.retain)
    except errors.Unavailable as error:
        return error
    return new_id("msg", now)


def _accepted(message_id: str) -> RawResponse:
    return RawResponse(200, b'{"success":true,"message_id":"%b"}' % message_id.encode(), _JSON)


def _batch(results: Sequence[str | errors.WardkeyError], request_id: str) -> bytes:
    items = [
        {"success": False, **problem_body(result, request_id)}
        if isinstance(result, errors.WardkeyError)
        else {"success": True, "message_id": result}
        for result in results
    ]
    return _encoder.encode(items)


FAST_ROUTES = {
    path: FastRoute(b"POST", f"POST {path.decode()}", publish_on_fast_path, is_caller_cached)
    for path in (b"/publish", b"/v1/publish")
}
