"""Routes that judge keys: verify, its batch, and forward-auth for proxies."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response

from wardkey.domain import errors
from wardkey.domain.permissions import KeyType
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Environment
from wardkey.domain.times import iso
from wardkey.domain.verdict import KnownSecret, Question, Verdict
from wardkey.verify import wire
from wardkey.verify.verifier import Answer
from wardkey.web.caller import (
    Known,
    client_address,
    from_browser,
    note_exposure,
    shown_credential,
)
from wardkey.web.context import Context, Here
from wardkey.web.problems import problem_response, rate_headers, takes_json, told

router = APIRouter(tags=["verify"], dependencies=[Depends(takes_json)])

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


def _takes(schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


async def _body(request: Request) -> bytes:
    return await request.body()


RawBody = Annotated[bytes, Depends(_body)]


@router.post(
    "/v2/keys/verify",
    openapi_extra=_takes(_ONE),
    responses={
        **told(errors.InvalidCost, errors.TooManyItems, errors.MalformedJson, body=True),
        200: {"content": {"application/json": {"schema": _VERDICT}}},
    },
    response_class=Response,
)
def verify_key(caller: Known, here: Here, body: RawBody) -> Response:
    """Judge a key; a refusal is an answer too: 200 with `valid: false` and its code."""
    with here.runner.noting("verify_key", caller.by):
        caller.by.require_verifying()
        return _json(_answer(here, caller.by, wire.read_request(body)))


@router.post(
    "/v2/keys/verify-batch",
    openapi_extra=_takes(_MANY),
    responses={
        **told(errors.InvalidCost, errors.TooManyItems, errors.MalformedJson, body=True),
        200: {
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["items"],
                        "properties": {"items": {"type": "array", "items": _VERDICT}},
                    }
                }
            }
        },
    },
    response_class=Response,
)
def verify_keys(caller: Known, here: Here, body: RawBody) -> Response:
    """Judge up to a hundred keys, each by itself, in their order."""
    with here.runner.noting("verify_keys", caller.by):
        caller.by.require_verifying()
        items = [_answer(here, caller.by, item) for item in wire.read_batch(body)]
    return _json({"items": items})


def _answer(here: Context, by: Principal, wanted: wire.VerifyRequest) -> dict[str, Any]:
    asked = _question(by, wanted)
    if by.kind is PrincipalKind.SERVICE_KEY:
        here.runner.notes.note(by, "service_key.used", "verify")
    answer = here.verifier.verify(asked, wanted.user_agent)
    _note_browser(here, answer, asked)
    return wire.render(answer, asked)


def _question(by: Principal, wanted: wire.VerifyRequest) -> Question:
    """Return what `by` may ask: of its own organization and environment, or of any."""
    if by.kind is PrincipalKind.SERVICE_KEY:
        org_id, environment = wanted.organization, wanted.environment
    else:
        org_id, environment = by.org_id, wanted.environment or by.environment
        if environment is not by.environment:
            raise errors.WrongEnvironment(
                f"You ask in {by.environment}, where {environment} keys are not known; ask with "
                f"a {environment} key."
            )
        if wanted.organization not in ("", org_id):
            raise errors.OtherOrganization
    return Question(
        wanted.key,
        organization=org_id,
        environment=environment,
        type=wanted.type,
        permissions=tuple(wanted.permissions),
        address=wanted.address,
        origin=wanted.origin,
        cost=wanted.cost,
    )


@router.get(
    "/v2/auth",
    responses={
        **told(errors.OtherOrganization, errors.OriginNotAllowed),
        200: {"description": "The key opens it; the Wardkey-* headers say whose it is."},
    },
    response_class=Response,
    openapi_extra={"security": [{"key": []}, {"keyHeader": []}]},
)
def forward_auth(  # noqa: PLR0917 - FastAPI's parameters
    request: Request,
    here: Here,
    organization: Annotated[str, Query(max_length=64)] = "",
    environment: Environment = Environment.LIVE,
    type: Annotated[KeyType, Query()] = KeyType.SECRET,  # noqa: A002 - the parameter's name
    permission: Annotated[list[str] | None, Query(max_length=20)] = None,
) -> Response:
    """Judge the key of a request that a proxy holds up; the proxy's URL says whose keys it takes.

    Every identity header is always sent, even empty, so that none can be forged from outside.
    """
    try:
        asked = _proxied(request, here, organization, environment, type, permission or [])
        answer = here.verifier.verify(asked, request.headers.get("user-agent", "")[:200])
    except errors.Failure as failure:
        response = problem_response(failure, request)
        response.headers.update(_identity(None, failure.code))
        return response
    _note_browser(here, answer, asked)
    passed = answer.verdict is Verdict.VALID
    judged = Response() if passed else problem_response(answer.failure(asked), request)
    judged.headers.update(_identity(answer.known, answer.verdict))
    if answer.admission is not None and answer.known is not None and answer.known.rate is not None:
        judged.headers.update(rate_headers(answer.known.rate, answer.admission))
    return judged


def _proxied(  # noqa: PLR0917 - what the proxy's URL states
    request: Request,
    here: Context,
    organization: str,
    environment: Environment,
    key_type: KeyType,
    permissions: list[str],
) -> Question:
    if not organization and not here.verifier.directory.has_one_organization():
        raise errors.OrganizationRequired(
            "This deployment has several organizations; say in the proxy's URL whose keys open "
            "this: ?organization=<slug or id>.",
            field="organization",
        )
    text = shown_credential(request, here)
    if not text:
        raise errors.MissingCredentials
    return Question(
        text,
        organization=organization,
        environment=environment,
        type=key_type,
        permissions=tuple(permissions),
        address=client_address(request, here),
        origin=request.headers.get("origin", ""),
        browser=from_browser(request),
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
        quote(known.name, safe=" "),
        str(known.type),
        str(known.environment),
        known.org_id,
        known.org_slug,
        " ".join(sorted(known.permissions)),
        "" if expiry is None else iso(expiry),
    )
    return dict(zip(_IDENTITY, values, strict=True))


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


def _json(value: Any) -> Response:  # noqa: ANN401 - JSON values
    return Response(
        wire.encode(value),
        media_type="application/json",
        headers={"Cache-Control": "no-store"},
    )
