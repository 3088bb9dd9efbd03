"""`POST /publish`: an HTTP request becomes an MQTT message that the broker has acknowledged."""

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
from wardkey.bridge.wire import Message, PublishRequest, message_of, read_publish
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
    """What may be published, item by item; `is_batch` says how it is answered."""

    by: Principal
    items: Sequence[Message | errors.WardkeyError]
    is_batch: bool
    held: Claim | None


@router.options("/publish", include_in_schema=False)
@router.options("/v1/publish", include_in_schema=False)
def preflight() -> Response:
    """Answer a browser's question; it carries no key, so the origin is checked on the request."""
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
        200: described.ANSWER,
    },
    response_class=Response,
)
@router.post("/v1/publish", include_in_schema=False)
async def publish(request: Request, ctx: CurrentContext) -> Response:
    """Publish a message, or up to 1,000, to MQTT; the answer comes once the broker has them."""
    incoming = RawRequest.of(request, await request.body())
    began = perf_counter()
    out = await _published(incoming, ctx)
    return _finished(out, incoming, ctx, began).response()


def publish_on_fast_path(
    incoming: RawRequest, ctx: AppContext
) -> RawResponse | asyncio.Future[RawResponse] | None:
    """Answer one ordinary message without a thread; None for what is no such.

    What would have to be waited for (a connection, the database) is waited for in a task.
    """
    if (
        ctx.publishers is None
        or not has_simple_credential(incoming, ctx)
        or b"idempotency-key" in incoming.named
        or _GRANT in incoming.named
        or incoming.body.lstrip()[:1] == b"["
    ):
        return None
    began = perf_counter()
    try:
        by = _publishing(incoming, ctx).by
        wanted = read_publish(incoming.body)
        assert not isinstance(wanted, list)  # noqa: S101 - looked at above
        asked = _PublishJob(incoming, ctx, by, wanted, began)
        return _sent(asked, ctx.publishers) or asyncio.create_task(_published_later(asked))
    except errors.WardkeyError as failure:
        out = raw_problem_response(failure, incoming.request_id)
    except Exception:
        log.exception("request %s failed", incoming.request_id)
        out = raw_problem_response(errors.InternalError(), incoming.request_id)
    return _finished(out, incoming, ctx, began)


@dataclass(frozen=True, slots=True)
class _PublishJob:
    """A request with one message that is being answered since `began`."""

    incoming: RawRequest
    ctx: AppContext
    by: Principal
    wanted: PublishRequest
    began: float

    def told(self, answer: str | errors.WardkeyError) -> RawResponse:
        """Return what is answered: the message's id, or why it was not published."""
        if isinstance(answer, errors.WardkeyError):
            out = raw_problem_response(answer, self.incoming.request_id)
        else:
            out = _said(answer)
        return _finished(out, self.incoming, self.ctx, self.began)


def _finished(out: RawResponse, incoming: RawRequest, ctx: AppContext, began: float) -> RawResponse:
    out.lines = _CORS
    ctx.verifier.metrics.observe(incoming.route, perf_counter() - began)
    return out


def _sent(
    asked: _PublishJob, publishers: Publishers
) -> RawResponse | asyncio.Future[RawResponse] | None:
    """Send a message; None, and nothing was sent, where something must be waited for."""
    by, ctx, rules = asked.by, asked.ctx, _NO_RULES
    if by.key_type is KeyType.PUBLISHABLE:
        kept = ctx.rights.get_cached(by.scope, ctx.verifier.directory.revision())
        if kept is None:
            return None
        rules = kept
    if not publishers.is_ready(by.scope):
        return None
    message = _checked(ctx, by, rules, asked.wanted)
    said = new_id("msg", ctx.runner.database.clock())
    if message.qos == 0:
        publishers.send(by.scope, message.topic, message.payload, None, retain=message.retain)
        return asked.told(said)
    answer: asyncio.Future[RawResponse] = asyncio.get_running_loop().create_future()

    def done(failure: errors.WardkeyError | None) -> None:
        answer.set_result(asked.told(failure or said))

    publishers.send(by.scope, message.topic, message.payload, done, retain=message.retain)
    return answer


async def _published_later(asked: _PublishJob) -> RawResponse:
    """Publish a message whose rules, or whose connection, must be waited for."""
    ctx = asked.ctx
    try:
        assert ctx.publishers is not None  # noqa: S101 - the caller looked
        rules = await run_in_threadpool(_rules, ctx, asked.by)
        message = _checked(ctx, asked.by, rules, asked.wanted)
        now = ctx.runner.database.clock()
        return asked.told(await _publish_one(ctx.publishers, asked.by, message, now))
    except errors.WardkeyError as failure:
        return asked.told(failure)
    except Exception:
        log.exception("request %s failed", asked.incoming.request_id)
        return asked.told(errors.InternalError())


async def _published(incoming: RawRequest, ctx: AppContext) -> RawResponse:
    try:
        if ctx.publishers is None:
            raise errors.MessagingOff
        prepared = await run_in_threadpool(_prepare, incoming, ctx)
        if prepared.held is not None and prepared.held.answer is not None:
            status, _, body = prepared.held.answer.partition(b" ")
            return RawResponse(int(status), body, _JSON)
        now = ctx.runner.database.clock()
        answers = await asyncio.gather(
            *(_publish_one(ctx.publishers, prepared.by, item, now) for item in prepared.items)
        )
        if prepared.is_batch:
            out = RawResponse(200, _batch(answers, incoming.request_id), _JSON)
        elif isinstance(answers[0], errors.WardkeyError):
            out = raw_problem_response(answers[0], incoming.request_id)
        else:
            out = _said(answers[0])
        if prepared.held is not None:
            unsent = all(isinstance(answer, _UNSENT) for answer in answers)
            kept = None if unsent else b"%d %b" % (out.status, out.body)
            await run_in_threadpool(settle, ctx.runner.database, prepared.held, kept)
    except errors.WardkeyError as failure:
        return raw_problem_response(failure, incoming.request_id)
    return out


def _publishing(incoming: RawRequest, ctx: AppContext) -> Caller:
    """Return the caller, who may publish."""
    require_json_body(incoming)
    caller = caller_in_organization(incoming, ctx)
    try:
        caller.by.require(Permission.PUBLISH)
    except errors.Forbidden as failure:
        ctx.runner.note_refusal("publish", caller.by, failure)
        raise
    return caller


def _prepare(incoming: RawRequest, ctx: AppContext) -> Prepared:
    """Identify, read and check everything before anything is sent."""
    caller = _publishing(incoming, ctx)
    by = caller.by
    wanted = read_publish(incoming.body)
    is_batch = isinstance(wanted, list)
    many = wanted if isinstance(wanted, list) else [wanted]
    rules, beside = _rules(ctx, by), _beside(incoming, ctx, by)
    items: list[Message | errors.WardkeyError] = []
    for one in many:
        try:
            items.append(_checked(ctx, by, rules, one, beside=beside, is_noted=not is_batch))
        except errors.WardkeyError as failure:
            if not is_batch:
                raise
            items.append(failure)
    held = None
    retry_key = incoming.header(b"idempotency-key")
    if retry_key:
        unconfirmed = errors.PublishUnconfirmed()
        body = _encoder.encode(problem_body(unconfirmed, incoming.request_id))
        held = claim(
            ctx.runner.database,
            by,
            Retry(retry_key, "POST /publish", incoming.body, caller.credential),
            b"%d %b" % (status_of(errors.PublishUnconfirmed), body),
        )
    return Prepared(by, items, is_batch, held)


def _rules(ctx: AppContext, by: Principal) -> RuleSet:
    """Return the rules that bind a caller; only publishable keys are bound."""
    if by.key_type is not KeyType.PUBLISHABLE:
        return _NO_RULES
    with ctx.runner.database.read() as tx:
        return ctx.rights.rules(tx, by.scope)


def _beside(incoming: RawRequest, ctx: AppContext, by: Principal) -> Actor | None:
    """Return the user of a grant that stands beside the key; raises `InvalidToken`."""
    shown = trim_field(incoming.header(_GRANT))
    if not shown:
        return None
    known = find_grant(ctx.runner.database, shown)
    if known is None or (known.org_id, known.environment) != by.scope:
        raise errors.InvalidToken(
            "The grant in X-Wardkey-Grant is over, or of another organization or environment; "
            "exchange anew."
        )
    return known.actor("")


def _checked(
    ctx: AppContext,
    by: Principal,
    rules: RuleSet,
    wanted: PublishRequest,
    *,
    beside: Actor | None = None,
    is_noted: bool = True,
) -> Message:
    """Return a message that may be published; raises what is wrong with it, `PublishDenied`.

    `beside` is the user of a grant that was sent with a publishable key; what he may is enough.
    """
    message = message_of(wanted)
    if by.key_type is not KeyType.PUBLISHABLE:
        return message
    decision = rules.decide(
        Actor(ActorKind.PUBLISHABLE_KEY, by.org_id), Action.PUBLISH, message.topic
    )
    if decision.allowed or (
        beside is not None and rules.decide(beside, Action.PUBLISH, message.topic).allowed
    ):
        return message
    said = "no rule for publishable keys allows it"
    if decision.rule is not None:
        rule = decision.rule
        said = f"rule {rule.id} ({rule.effect} {rule.action} {rule.filter}) denies it"
    failure = errors.PublishDenied(
        f"Publishing to {message.topic} is denied: {said}.", field="topic"
    )
    if is_noted:
        ctx.runner.note_refusal("publish", by, failure)
    raise failure


async def _publish_one(
    publishers: Publishers, by: Principal, item: Message | errors.WardkeyError, now: int
) -> str | errors.WardkeyError:
    """Return the message's id, or why it was not published."""
    if isinstance(item, errors.WardkeyError):
        return item
    try:
        await publishers.publish(by.scope, item.topic, item.payload, item.qos, retain=item.retain)
    except errors.Unavailable as failure:
        return failure
    return new_id("msg", now)


def _said(message_id: str) -> RawResponse:
    return RawResponse(200, b'{"success":true,"message_id":"%b"}' % message_id.encode(), _JSON)


def _batch(answers: Sequence[str | errors.WardkeyError], request_id: str) -> bytes:
    told_each = [
        {"success": False, **problem_body(answer, request_id)}
        if isinstance(answer, errors.WardkeyError)
        else {"success": True, "message_id": answer}
        for answer in answers
    ]
    return _encoder.encode(told_each)


FAST_ROUTES = {
    path: FastRoute(b"POST", f"POST {path.decode()}", publish_on_fast_path, is_caller_cached)
    for path in (b"/publish", b"/v1/publish")
}
