"""Routes that judge keys: verify, its batch, and forward-auth for proxies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from time import perf_counter
from typing import Any, NoReturn
from urllib.parse import parse_qsl, quote

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.domain import errors
from wardkey.domain.callers import MOST_ROUTE
from wardkey.domain.credentials import trim
from wardkey.domain.permissions import KeyType, is_permission
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.domain.verdict import KnownSecret, Question, Verdict
from wardkey.verify import wire
from wardkey.verify.verifier import Answer
from wardkey.web.caller import (
    Caller,
    at_hand,
    caller_in_organization,
    client_address,
    from_browser,
    is_ordinary,
    no_credential,
    note_exposure,
    shown_credential,
)
from wardkey.web.context import Context, Here
from wardkey.web.incoming import Incoming, Outgoing, header_lines
from wardkey.web.lane import HotRoute
from wardkey.web.problems import check_json, problem_outgoing, rate_headers, told

router = APIRouter(tags=["verify"])
log = logging.getLogger("wardkey")

Judge = Callable[[Incoming, Context], Outgoing]
_JSON_TYPE = "application/json"
_LONGEST_SLUG = 64
_MOST_PERMISSIONS = 20

_ONE, _MANY, QUESTIONS = wire.schemas()
_EXAMPLE = {
    "valid": True,
    "code": "valid",
    "key_id": "key_0fA3xQ2LmN7pR9sT1uV4wY",
    "kid": "7QdRk2mVx9Ta",
    "name": "live-billing-webhooks",
    "type": "secret",
    "environment": "live",
    "organization": {"id": "org_0fA3xQ2LmN7pR9sT1uV4wY", "slug": "acme", "name": "Acme"},
    "permissions": ["invoices:read"],
    "metadata": {},
    "expires_at": None,
    "grace_ends_at": None,
    "limits": None,
    "as_of": "2030-01-31T12:00:00.000Z",
}
_VERDICT = {
    "type": "object",
    "required": ["valid", "code", "as_of"],
    "properties": {
        "valid": {"type": "boolean"},
        "code": {"enum": [str(verdict) for verdict in Verdict]},
        "as_of": {"type": "string", "format": "date-time"},
    },
    "example": _EXAMPLE,
}


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_SECURITY: list[dict[str, list[str]]] = [{"key": []}, {"keyHeader": []}, {"userToken": []}]
_BATCH = {
    "type": "object",
    "required": ["items"],
    "properties": {"items": {"type": "array", "items": _VERDICT}},
}


def _takes(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}, "security": _SECURITY}


@router.post(
    "/v2/keys/verify",
    openapi_extra=_takes(_ONE),
    responses={
        **told(errors.InvalidCost, errors.TooManyItems, errors.OtherOrganization, body=True),
        200: {"content": {"application/json": {"schema": _VERDICT}}},
    },
    response_class=Response,
)
async def verify_key(request: Request, here: Here) -> Response:
    """Judge a key; a refusal is an answer too: 200 with `valid: false` and its code."""
    return await _apart(_answer_one, request, here)


@router.post(
    "/v2/keys/verify-batch",
    openapi_extra=_takes(_MANY),
    responses={
        **told(errors.InvalidCost, errors.TooManyItems, errors.OtherOrganization, body=True),
        200: {"content": {"application/json": {"schema": _BATCH}}},
    },
    response_class=Response,
)
async def verify_keys(request: Request, here: Here) -> Response:
    """Judge up to a hundred keys, each by itself, in their order."""
    return await _apart(_answer_many, request, here)


@router.get(
    "/v2/auth",
    responses={
        **told(errors.OtherOrganization, errors.OriginNotAllowed),
        200: {
            "description": "The key opens it; the Wardkey-* headers say whose it is.",
            "headers": {
                "Deprecation": {
                    "description": "RFC 9745: when the key got a newer secret than this one.",
                    "schema": {"type": "string", "pattern": "^@[0-9]+$"},
                    "example": "@1893456000",
                },
                "Sunset": {
                    "description": "RFC 8594: when the secret ends, to the second.",
                    "schema": {"type": "string"},
                    "example": "Tue, 01 Jan 2030 00:00:00 GMT",
                },
            },
        },
    },
    response_class=Response,
    openapi_extra={
        "security": [{"key": []}, {"keyHeader": []}],
        "parameters": [
            _parameter("organization", {"type": "string", "maxLength": 64}),
            _parameter("environment", {"enum": list(Environment), "default": "live"}),
            _parameter("type", {"enum": list(KeyType), "default": "secret"}),
            _parameter(
                "permission", {"type": "array", "items": {"type": "string"}, "maxItems": 20}
            ),
        ],
    },
)
async def forward_auth(request: Request, here: Here) -> Response:
    """Judge the key of a request that a proxy holds up; the proxy's URL says whose keys it takes.

    Every identity header is always sent, even empty, so that none can be forged from outside.
    """
    return await _apart(_answer_proxied, request, here)


async def _apart(answer: Judge, request: Request, here: Context) -> Response:
    """Judge in a thread, where waiting for a database holds up nobody."""
    incoming = Incoming.of(request, await request.body())
    return (await run_in_threadpool(answer, incoming, here)).response()


def answering(judge: Judge) -> Judge:
    """Return `judge` with what it raises as a problem in its answer."""

    def answer(incoming: Incoming, here: Context) -> Outgoing:
        began = perf_counter()
        try:
            return judge(incoming, here)
        except errors.Failure as failure:
            return problem_outgoing(failure, incoming.request_id)
        except Exception:
            log.exception("request %s failed", incoming.request_id)
            return problem_outgoing(errors.InternalError(), incoming.request_id)
        finally:
            here.verifier.metrics.observe(incoming.route, perf_counter() - began)

    return answer


def judge_one(incoming: Incoming, here: Context) -> Outgoing:
    """Answer POST /v2/keys/verify."""
    caller = _asking(incoming, here, "verify_key")
    told = _answer(here, caller.by, wire.read_request(incoming.body))
    return Outgoing(200, told, _JSON_TYPE)


def judge_many(incoming: Incoming, here: Context) -> Outgoing:
    """Answer POST /v2/keys/verify-batch."""
    caller = _asking(incoming, here, "verify_keys")
    items = [_answer(here, caller.by, item) for item in wire.read_batch(incoming.body)]
    return Outgoing(200, wire.render_batch(items), _JSON_TYPE)


def _asking(incoming: Incoming, here: Context, attempt: str) -> Caller:
    said = incoming.text(b"content-type")
    if said != _JSON_TYPE and incoming.body:
        check_json(said)
    caller = caller_in_organization(incoming, here)
    if incoming.query:
        raise errors.InvalidRequest("This route takes no parameter in its URL.")
    try:
        caller.by.require_verifying()
    except errors.Forbidden as failure:
        here.runner.note_refusal(attempt, caller.by, failure)
        raise
    return caller


def _answer(here: Context, by: Principal, wanted: wire.VerifyRequest) -> bytes:
    asked = _question(here, by, wanted)
    if by.kind is PrincipalKind.SERVICE_KEY:
        here.runner.notes.note(by, "service_key.used", "verify")
    # The caller's own verdict came first, so commits before this request are known already.
    answer = here.verifier.verify(
        asked,
        wanted.user_agent,
        wanted.route or "verify",
        looked=by.kind is PrincipalKind.KEY,
    )
    _note_browser(here, answer, asked)
    return wire.render(answer, asked)


def _question(here: Context, by: Principal, wanted: wire.VerifyRequest) -> Question:
    """Return what `by` may ask: of its own organization and environment, or of any."""
    if by.kind is PrincipalKind.SERVICE_KEY:
        org_id, environment = wanted.organization, wanted.environment
    else:
        org_id, environment = by.org_id, wanted.environment or by.environment
        if environment is not by.environment or wanted.organization not in ("", org_id):
            _refuse(here, by, environment)
    return Question(
        trim(wanted.key),
        organization=org_id,
        environment=environment,
        type=wanted.type,
        permissions=tuple(wanted.permissions),
        address=wanted.address,
        origin=wanted.origin,
        cost=wanted.cost,
    )


def _refuse(here: Context, by: Principal, environment: Environment) -> NoReturn:
    with here.runner.noting("verify_key", by):
        if environment is not by.environment:
            raise errors.WrongEnvironment(
                f"You ask in {by.environment}, where {environment} keys are not known; ask "
                f"with a {environment} key."
            )
        raise errors.OtherOrganization


def judge_proxied(incoming: Incoming, here: Context) -> Outgoing:
    """Answer GET /v2/auth."""
    try:
        asked = _proxied(incoming, here, terms_of(incoming.query))
        agent = incoming.text(b"user-agent")[:200]
        answer = here.verifier.verify(asked, agent, _held_route(incoming))
    except errors.Failure as raised:
        # A proxy is told that the key could not be judged, not which part of us is away.
        away = isinstance(raised, errors.Unavailable)
        failure = errors.VerifierUnavailable() if away else raised
        refused = problem_outgoing(failure, incoming.request_id)
        return replace(refused, headers={**refused.headers, **_identity(None, failure.code)})
    _note_browser(here, answer, asked)
    known = answer.known
    if answer.verdict is Verdict.VALID and known is not None:
        if answer.admission is None and known.superseded_at is None:
            return Outgoing(200, lines=_valid_lines(known))
        return Outgoing(200, headers=_fields(answer))
    refused = problem_outgoing(answer.failure(asked), incoming.request_id)
    return replace(refused, headers={**refused.headers, **_fields(answer)})


def _fields(answer: Answer) -> dict[str, str]:
    fields = _identity(answer.known, answer.verdict) | wire.grace_fields(answer.known)
    if answer.admission is not None and answer.known is not None and answer.known.rate is not None:
        fields |= rate_headers(answer.known.rate, answer.admission)
    return fields


_lines: dict[str, tuple[KnownSecret, str]] = {}
_MOST_LINES = 50_000


def _valid_lines(known: KnownSecret) -> str:
    """Return the identity fields of a valid key, made once for each record."""
    kept = _lines.get(known.kid)
    if kept is not None and kept[0] is known:
        return kept[1]
    if len(_lines) >= _MOST_LINES:
        _lines.clear()
    fields = _identity(known, Verdict.VALID)
    lines = header_lines(fields)
    _lines[known.kid] = (known, lines)
    return lines


def _held_route(incoming: Incoming) -> str:
    """Return method and path of the request that a proxy holds up, as far as it tells them."""
    method = incoming.text(b"x-forwarded-method")
    path = incoming.text(b"x-forwarded-uri").partition("?")[0]
    return f"{method} {path}".strip()[:MOST_ROUTE] or "auth"


@dataclass(frozen=True, slots=True)
class Terms:
    """What the proxy's URL states: whose keys open this, and which."""

    organization: str = ""
    environment: Environment = Environment.LIVE
    type: KeyType = KeyType.SECRET
    permissions: tuple[str, ...] = ()


# A proxy asks with the same few URLs all the time.
@lru_cache(maxsize=1024)
def terms_of(query: bytes) -> Terms:
    """Read the query of a forward-auth URL; raises `InvalidRequest`."""
    said: dict[str, list[str]] = {}
    for name, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        said.setdefault(name, []).append(value)
    permissions = said.pop("permission", [])
    single = {name: values[-1] for name, values in said.items()}
    try:
        return _Terms(**single).terms(permissions)
    except (TypeError, ValueError):
        raise errors.InvalidRequest(
            "The proxy's URL takes organization (an id or a slug), environment (live or test), "
            "type (secret or publishable) and up to 20 times permission, such as invoices:read.",
        ) from None


@dataclass(frozen=True, slots=True)
class _Terms:
    organization: str = ""
    environment: str = Environment.LIVE
    type: str = KeyType.SECRET

    def terms(self, permissions: list[str]) -> Terms:
        if len(self.organization) > _LONGEST_SLUG or len(permissions) > _MOST_PERMISSIONS:
            raise ValueError
        if not all(map(is_permission, permissions)):
            raise ValueError
        return Terms(
            self.organization,
            Environment(self.environment),
            KeyType(self.type),
            tuple(permissions),
        )


def _proxied(incoming: Incoming, here: Context, terms: Terms) -> Question:
    if not terms.organization and not here.verifier.directory.has_one_organization():
        raise errors.OrganizationRequired(
            "This deployment has several organizations; say in the proxy's URL whose keys open "
            "this: ?organization=<id or slug>.",
            field="organization",
        )
    text = shown_credential(incoming, here)
    if not text:
        raise no_credential(incoming)
    return Question(
        text,
        organization=terms.organization,
        environment=terms.environment,
        type=terms.type,
        permissions=terms.permissions,
        address=client_address(incoming, here),
        origin=incoming.text(b"origin"),
        browser=from_browser(incoming),
    )


def _note_browser(here: Context, answer: Answer, asked: Question) -> None:
    known = answer.known
    if known is None or known.type is not KeyType.SECRET or not (asked.browser or asked.origin):
        return
    note_exposure(here, known, asked.address, "")


def _identity(known: KnownSecret | None, verdict: str) -> dict[str, str]:
    if known is None:
        return dict.fromkeys(_IDENTITY, "") | {"Wardkey-Verdict": str(verdict)}
    expiry = known.expires_at
    values = (
        str(verdict),
        known.key_id,
        known.kid,
        _quoted(known.name),
        str(known.type),
        str(known.environment),
        known.org_id,
        known.org_slug,
        _scopes(known.permissions),
        "" if expiry is None else iso(expiry),
    )
    return dict(zip(_IDENTITY, values, strict=True))


# Proxies ask for the same few keys all the time, and keys share their permissions.
@lru_cache(maxsize=4096)
def _quoted(name: str) -> str:
    return quote(name, safe=" ")


@lru_cache(maxsize=4096)
def _scopes(permissions: frozenset[str]) -> str:
    return " ".join(sorted(permissions))


_IDENTITY = (
    "Wardkey-Verdict",
    "Wardkey-Key-Id",
    "Wardkey-Kid",
    "Wardkey-Key-Name",
    "Wardkey-Key-Type",
    "Wardkey-Environment",
    "Wardkey-Organization",
    "Wardkey-Organization-Slug",
    "Wardkey-Permissions",
    "Wardkey-Expires-At",
)


def _one_at_hand(incoming: Incoming, here: Context) -> bool:
    try:
        keys = [wire.read_request(incoming.body).key]
    except errors.Failure:
        keys = []
    return at_hand(incoming, here, keys)


def _many_at_hand(incoming: Incoming, here: Context) -> bool:
    try:
        keys = [item.key for item in wire.read_batch(incoming.body)]
    except errors.Failure:
        keys = []
    return at_hand(incoming, here, keys)


def _proxied_at_hand(incoming: Incoming, here: Context) -> bool:
    terms = b"organization=" in incoming.query or here.verifier.directory.memory.has_one is not None
    return terms and at_hand(incoming, here)


def in_place(answer: Judge) -> Callable[[Incoming, Context], Outgoing | None]:
    """Return `answer` for the lane; None where the credential takes the framework's way."""

    def answer_ordinary(incoming: Incoming, here: Context) -> Outgoing | None:
        return answer(incoming, here) if is_ordinary(incoming, here) else None

    return answer_ordinary


_answer_one, _answer_many, _answer_proxied = map(answering, (judge_one, judge_many, judge_proxied))
HOT_ROUTES = {
    b"/v2/keys/verify": HotRoute(
        b"POST", "POST /v2/keys/verify", in_place(_answer_one), _one_at_hand
    ),
    b"/v2/keys/verify-batch": HotRoute(
        b"POST", "POST /v2/keys/verify-batch", in_place(_answer_many), _many_at_hand
    ),
    b"/v2/auth": HotRoute(b"GET", "GET /v2/auth", in_place(_answer_proxied), _proxied_at_hand),
}
