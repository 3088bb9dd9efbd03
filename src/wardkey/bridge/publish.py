"""`POST /publish`: an HTTP request becomes an MQTT message that the broker has acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.actions import acl
from wardkey.actions.idempotency import Retry
from wardkey.actions.publications import Claim, claim, settle
from wardkey.bridge.wire import Message, PublishRequest, message_of, read_publish
from wardkey.domain import errors
from wardkey.domain.acl import Action, Actor, ActorKind
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import KeyType, Permission
from wardkey.domain.principal import Principal
from wardkey.domain.rule_set import RuleSet
from wardkey.outside.publishers import Publishers
from wardkey.web.caller import caller_in_organization
from wardkey.web.context import Context, Here
from wardkey.web.incoming import Incoming, Outgoing
from wardkey.web.problems import check_json, problem_body, problem_outgoing, status_of, told

router = APIRouter(tags=["publish"])

_JSON = "application/json"
# A page must be able to read refusals too; no cookie ever counts here.
_CORS = {"Access-Control-Allow-Origin": "*", "Cache-Control": "no-store"}
_PREFLIGHT = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Idempotency-Key, Wardkey-Api-Key",
    "Access-Control-Max-Age": "7200",
}
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Prepared:
    """What may be published, item by item; `is_batch` says how it is answered."""

    by: Principal
    items: Sequence[Message | errors.Failure]
    is_batch: bool
    held: Claim | None


@router.options("/publish", include_in_schema=False)
@router.options("/v1/publish", include_in_schema=False)
def preflight() -> Response:
    """Answer a browser's question; it carries no key, so the origin is checked on the request."""
    return Response(status_code=204, headers=_PREFLIGHT)


@router.post(
    "/publish",
    responses=told(
        errors.InvalidTopic,
        errors.InvalidPayload,
        errors.PayloadTooLarge,
        errors.TooManyItems,
        errors.PublishDenied,
        errors.NotPermitted,
        errors.IdempotencyKeyReused,
        errors.WeakIdempotencyKey,
        errors.BrokerUnreachable,
        errors.PublishUnconfirmed,
        errors.MessagingOff,
        body=True,
    ),
    response_class=Response,
)
@router.post("/v1/publish", include_in_schema=False)
async def publish(request: Request, here: Here) -> Response:
    """Publish a message, or up to 1,000, to MQTT; the answer comes once the broker has them."""
    incoming = Incoming.of(request, await request.body())
    out = await _published(incoming, here)
    out.headers = {**out.headers, **_CORS}
    return out.response()


async def _published(incoming: Incoming, here: Context) -> Outgoing:
    try:
        if here.publishers is None:
            raise errors.MessagingOff
        prepared = await run_in_threadpool(_prepare, incoming, here)
        if prepared.held is not None and prepared.held.answer is not None:
            status, _, body = prepared.held.answer.partition(b" ")
            return Outgoing(int(status), body, _JSON)
        now = here.runner.database.clock()
        answers = await asyncio.gather(
            *(_publish_one(here.publishers, prepared.by, item, now) for item in prepared.items)
        )
        if prepared.is_batch:
            out = Outgoing(200, _batch(answers, incoming.request_id), _JSON)
        elif isinstance(answers[0], errors.Failure):
            out = problem_outgoing(answers[0], incoming.request_id)
        else:
            out = Outgoing(200, _said(answers[0]), _JSON)
        if prepared.held is not None:
            unsent = all(isinstance(answer, errors.BrokerUnreachable) for answer in answers)
            kept = None if unsent else b"%d %b" % (out.status, out.body)
            await run_in_threadpool(settle, here.runner.database, prepared.held, kept)
    except errors.Failure as failure:
        return problem_outgoing(failure, incoming.request_id)
    return out


def _prepare(incoming: Incoming, here: Context) -> Prepared:
    """Identify, read and check everything before anything is sent."""
    check_json(incoming.text(b"content-type"))
    caller = caller_in_organization(incoming, here)
    by = caller.by
    with here.runner.noting("publish", by):
        by.require(Permission.PUBLISH)
    wanted = read_publish(incoming.body)
    is_batch = isinstance(wanted, list)
    many = wanted if isinstance(wanted, list) else [wanted]
    check = _checker(by, here)
    items: list[Message | errors.Failure] = []
    for one in many:
        try:
            items.append(check(one))
        except errors.Failure as failure:
            if not is_batch:
                if isinstance(failure, errors.PublishDenied):
                    here.runner.note_refusal("publish", by, failure)
                raise
            items.append(failure)
    held = None
    retry_key = incoming.text(b"idempotency-key")
    if retry_key:
        unconfirmed = errors.PublishUnconfirmed()
        body = _encoder.encode(problem_body(unconfirmed, incoming.request_id))
        held = claim(
            here.runner.database,
            by,
            Retry(retry_key, "POST /publish", incoming.body, caller.credential),
            b"%d %b" % (status_of(errors.PublishUnconfirmed), body),
        )
    return Prepared(by, items, is_batch, held)


def _checker(by: Principal, here: Context) -> Callable[[PublishRequest], Message]:
    """Return what reads a message and holds it against the rules, read once for a request."""
    rules = RuleSet(())
    if by.key_type is KeyType.PUBLISHABLE:
        rules = here.runner.look(acl.rules_of, by)
    actor = Actor(ActorKind.PUBLISHABLE_KEY, by.org_id)

    def check(wanted: PublishRequest) -> Message:
        message = message_of(wanted)
        if by.key_type is not KeyType.PUBLISHABLE:
            return message
        decision = rules.decide(actor, Action.PUBLISH, message.topic)
        if decision.allowed:
            return message
        said = "no rule for publishable keys allows it"
        if decision.rule is not None:
            rule = decision.rule
            said = f"rule {rule.id} ({rule.effect} {rule.action} {rule.filter}) denies it"
        raise errors.PublishDenied(
            f"Publishing to {message.topic} is denied: {said}.", field="topic"
        )

    return check


async def _publish_one(
    publishers: Publishers, by: Principal, item: Message | errors.Failure, now: int
) -> str | errors.Failure:
    """Return the message's id, or why it was not published."""
    if isinstance(item, errors.Failure):
        return item
    try:
        await publishers.publish(by.room, item.topic, item.payload, item.qos, retain=item.retain)
    except errors.Unavailable as failure:
        return failure
    return new_id("msg", now)


def _said(message_id: str) -> bytes:
    return _encoder.encode({"success": True, "message_id": message_id})


def _batch(answers: Sequence[str | errors.Failure], request_id: str) -> bytes:
    told_each = [
        {"success": False, **problem_body(answer, request_id)}
        if isinstance(answer, errors.Failure)
        else {"success": True, "message_id": answer}
        for answer in answers
    ]
    return _encoder.encode(told_each)
