"""The token endpoint in the form of RFC 8693 and RFC 6749, which OAuth libraries speak."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.api.exchange import (
    JSON,
    LONGEST_BODY,
    RefreshRequest,
    check_exchange,
    refresh_once,
    with_fields,
)
from wardkey.domain import errors
from wardkey.domain.credentials import basic_pair, form_decoded, trim
from wardkey.domain.grants import token_id_of
from wardkey.domain.secret import kid_of
from wardkey.web.context import CurrentContext
from wardkey.web.cors import CORS_HEADERS, preflight_headers
from wardkey.web.problems import status_of
from wardkey.web.raw_http import RawRequest, RawResponse

router = APIRouter(tags=["tokens"])

_FORM = "application/x-www-form-urlencoded"
# RFC 8693 §3.
_TYPE = "urn:ietf:params:oauth:token-type:"
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_SUBJECTS = frozenset({f"{_TYPE}jwt", f"{_TYPE}id_token", f"{_TYPE}access_token"})
_ISSUED = f"{_TYPE}access_token"
_NUMBER = re.compile(r"[0-9]{1,9}")
# RFC 6749 §3.3; libraries send openid and its like without being asked.
_SCOPES = re.compile(r"(?:[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*)?")
# What every grant has, whatever was requested: MQTT, as far as the ACL rules allow.
_GRANTED = "mqtt"
_encoder = msgspec.json.Encoder()


@router.options("/oauth/token", include_in_schema=False)
def preflight() -> Response:
    """Answer a browser's question; it carries no key, so the origin is checked on the request."""
    return Response(status_code=204, headers=preflight_headers("POST"))


@router.post("/oauth/token", include_in_schema=False)
async def oauth_token(request: Request, ctx: CurrentContext) -> Response:
    """Exchange or refresh in the form of RFC 8693 and RFC 6749, which OAuth libraries speak."""
    incoming, refreshing = RawRequest.of(request, await request.body()), False
    try:
        form = _form(incoming)
        refreshing = form.get("grant_type") == "refresh_token"
        incoming = _with_client(incoming, form)
        if refreshing:
            text = trim(form.get("refresh_token", ""))
            minted = await run_in_threadpool(
                refresh_once, incoming, ctx, RefreshRequest(token_id_of(kid_of(text)), text)
            )
        else:
            exchange = await run_in_threadpool(check_exchange, _from_form(incoming, form), ctx)
            minted = await ctx.token_exchange.mint(exchange)
    except errors.WardkeyError as failure:
        return _oauth_refusal(failure, refreshing=refreshing).response()
    grant, password = minted.grant, minted.password.text
    answer = {
        "access_token": password,
        "issued_token_type": _ISSUED,
        "token_type": "Bearer",
        "expires_in": (grant.expires_at - grant.created_at) // 1000,
        "refresh_token": password,
        "scope": _GRANTED,
        "mqtt_username": grant.mqtt_username,
        "token_id": grant.token_id,
    }
    return RawResponse(200, _encoder.encode(answer), JSON, CORS_HEADERS).response()


def _form(incoming: RawRequest) -> dict[str, str]:
    """Read the form; a parameter that comes twice is a fault (RFC 6749 §3.2)."""
    content_type = incoming.header(b"content-type").partition(";")[0].strip().lower()
    if content_type != _FORM:
        raise errors.UnsupportedMediaType(f"Send the parameters as {_FORM}.")
    if len(incoming.body) > LONGEST_BODY:
        raise errors.BodyTooLarge
    try:
        text = incoming.body.decode()
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=30)
    except ValueError:
        raise errors.InvalidRequest("The form cannot be read.") from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise errors.InvalidRequest("A parameter of the form comes twice.")
    return form


def _with_client(incoming: RawRequest, form: dict[str, str]) -> RawRequest:
    """Return the request with a client's secret (RFC 6749 §2.3.1), which is a key, as Bearer."""
    scheme, _, rest = incoming.header(b"authorization").partition(" ")
    secret = form.get("client_secret", "")
    fields = incoming.headers
    if scheme.lower() == "basic":
        user, password = basic_pair(rest)
        if not (user or password):
            raise errors.MissingCredentials("The Basic credentials cannot be read.")
        if secret:
            raise errors.AmbiguousCredentials
        # RFC 6749 puts the key in the password; `curl -u KEY:` puts it in the user name.
        secret = form_decoded(password or user)
        fields = [(name, value) for name, value in fields if name != b"authorization"]
    if not secret:
        return incoming
    return with_fields(incoming, [*fields, (b"authorization", b"Bearer " + secret.encode())])


def _from_form(incoming: RawRequest, form: dict[str, str]) -> RawRequest:
    """Return the request as `POST /v2/tokens/exchange` takes it; raises what RFC 8693 forbids."""
    if form.get("grant_type") != _EXCHANGE:
        raise errors.UnsupportedGrantType
    if form.get("subject_token_type") not in _SUBJECTS:
        raise errors.InvalidRequest(
            f"subject_token_type is one of {', '.join(sorted(_SUBJECTS))}.",
            errors=(("subject_token_type", "Not supported."),),
        )
    if form.get("requested_token_type", _ISSUED) != _ISSUED:
        raise errors.InvalidRequest(f"requested_token_type can only be {_ISSUED}.")
    if "actor_token" in form:
        raise errors.InvalidRequest("Nobody acts for somebody else here; leave out actor_token.")
    if not _SCOPES.fullmatch(form.get("scope", "")):
        raise errors.InvalidScope
    body: dict[str, object] = {
        "token": form.get("subject_token", ""),
        "provider": form.get("provider", ""),
        "organization_id": form.get("audience", ""),
    }
    if "ttl" in form:
        if not _NUMBER.fullmatch(form["ttl"]):
            raise errors.InvalidTtl(field="ttl")
        body["ttl"] = int(form["ttl"])
    fields = [(name, value) for name, value in incoming.headers if name != b"content-type"]
    fields.append((b"content-type", JSON.encode()))
    return with_fields(incoming, fields, _encoder.encode(body))


# What RFC 6749 §5.2 and RFC 8693 §2.2.2 call a failure, the first that fits; 0 keeps its status.
_OAUTH_ERRORS: tuple[tuple[tuple[type[errors.WardkeyError], ...], str, int], ...] = (
    ((errors.UnsupportedGrantType,), "unsupported_grant_type", 400),
    ((errors.InvalidScope,), "invalid_scope", 400),
    ((errors.RefreshReplayed,), "invalid_grant", 400),
    ((errors.InvalidToken, errors.TokenExpired), "invalid_request", 400),
    (
        (errors.ProviderNotFound, errors.OrganizationNotFound, errors.AmbiguousProvider),
        "invalid_target",
        400,
    ),
    ((errors.Unauthenticated,), "invalid_client", 401),
    ((errors.Forbidden,), "unauthorized_client", 400),
    ((errors.RateLimited, errors.Unavailable), "temporarily_unavailable", 0),
    ((errors.BodyTooLarge,), "invalid_request", 0),
)


def _oauth_refusal(failure: errors.WardkeyError, *, refreshing: bool) -> RawResponse:
    """Return a failure as RFC 6749 §5.2 writes it."""
    told = ((code, status) for kinds, code, status in _OAUTH_ERRORS if isinstance(failure, kinds))
    code, status = next(told, ("invalid_request", 400))
    if refreshing and isinstance(failure, errors.InvalidToken):
        code = "invalid_grant"
    status = status or status_of(type(failure))
    answer = {
        "error": code,
        "error_description": failure.detail,
        "error_uri": f"/problems/{failure.code}",
    }
    headers = dict(CORS_HEADERS)
    if status == 401:  # noqa: PLR2004 - RFC 9110 §15.5.2
        headers["WWW-Authenticate"] = 'Basic realm="wardkey"'
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(failure.retry_after_s)))
    return RawResponse(status, _encoder.encode(answer), JSON, headers)
