"""The OAuth token endpoint, for OAuth libraries: exchange (RFC 8693) and refresh (RFC 6749)."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.api.exchange import (
    JSON,
    MAX_BODY,
    RefreshRequest,
    refresh_once,
    replace_headers,
    verify_exchange,
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

_FORM_TYPE = "application/x-www-form-urlencoded"
# RFC 8693 §3.
_TYPE_PREFIX = "urn:ietf:params:oauth:token-type:"
_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_SUBJECT_TYPES = frozenset(
    {f"{_TYPE_PREFIX}jwt", f"{_TYPE_PREFIX}id_token", f"{_TYPE_PREFIX}access_token"}
)
_ISSUED_TYPE = f"{_TYPE_PREFIX}access_token"
_NUMBER = re.compile(r"[0-9]{1,9}")
# RFC 6749 §3.3; libraries send openid and the like by default.
_SCOPE_SYNTAX = re.compile(r"(?:[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*)?")
# The scope of every grant, whatever was requested: MQTT, within the ACL rules.
_GRANTED_SCOPE = "mqtt"
_encoder = msgspec.json.Encoder()


@router.options("/oauth/token", include_in_schema=False)
def preflight() -> Response:
    """Answer a CORS preflight. It carries no key, so the origin is checked on the request."""
    return Response(status_code=204, headers=preflight_headers("POST"))


@router.post("/oauth/token", include_in_schema=False)
async def oauth_token(request: Request, ctx: CurrentContext) -> Response:
    """Exchange a token (RFC 8693), or refresh a grant (RFC 6749)."""
    incoming, is_refresh = RawRequest.of(request, await request.body()), False
    try:
        form = _parse_form(incoming)
        is_refresh = form.get("grant_type") == "refresh_token"
        incoming = _move_client_secret(incoming, form)
        if is_refresh:
            text = trim(form.get("refresh_token", ""))
            minted = await run_in_threadpool(
                refresh_once, incoming, ctx, RefreshRequest(token_id_of(kid_of(text)), text)
            )
        else:
            exchange = await run_in_threadpool(
                verify_exchange, _to_exchange_request(incoming, form), ctx
            )
            minted = await ctx.token_exchange.mint(exchange)
    except errors.WardkeyError as error:
        return _render_oauth_error(error, is_refresh=is_refresh).response()
    grant, password = minted.grant, minted.password.text
    body = {
        "access_token": password,
        "issued_token_type": _ISSUED_TYPE,
        "token_type": "Bearer",
        "expires_in": (grant.expires_at - grant.created_at) // 1000,
        "refresh_token": password,
        "scope": _GRANTED_SCOPE,
        "mqtt_username": grant.mqtt_username,
        "token_id": grant.token_id,
    }
    return RawResponse(200, _encoder.encode(body), JSON, CORS_HEADERS).response()


def _parse_form(incoming: RawRequest) -> dict[str, str]:
    """Parse the form; a repeated parameter is an error (RFC 6749 §3.2)."""
    content_type = incoming.header(b"content-type").partition(";")[0].strip().lower()
    if content_type != _FORM_TYPE:
        raise errors.UnsupportedMediaType(f"Send the parameters as {_FORM_TYPE}.")
    if len(incoming.body) > MAX_BODY:
        raise errors.BodyTooLarge
    try:
        text = incoming.body.decode()
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=30)
    except ValueError:
        raise errors.InvalidRequest(
            "The form can't be read; send UTF-8 and at most 30 parameters."
        ) from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise errors.InvalidRequest("The form repeats a parameter; send each parameter once.")
    return form


def _move_client_secret(incoming: RawRequest, form: dict[str, str]) -> RawRequest:
    """Return the request with the client secret (RFC 6749 §2.3.1), a key, as a Bearer token."""
    scheme, _, rest = incoming.header(b"authorization").partition(" ")
    secret = form.get("client_secret", "")
    headers = incoming.headers
    if scheme.lower() == "basic":
        user, password = basic_pair(rest)
        if not (user or password):
            raise errors.MissingCredentials(
                "The Basic credentials can't be read; send base64 of user:password."
            )
        if secret:
            raise errors.AmbiguousCredentials
        # RFC 6749 puts the key in the password; `curl -u KEY:` puts it in the user name.
        secret = form_decoded(password or user)
        headers = [(name, value) for name, value in headers if name != b"authorization"]
    if not secret:
        return incoming
    return replace_headers(incoming, [*headers, (b"authorization", b"Bearer " + secret.encode())])


def _to_exchange_request(incoming: RawRequest, form: dict[str, str]) -> RawRequest:
    """Convert the form to a request of `POST /v2/tokens/exchange`; raises what RFC 8693 forbids."""
    if form.get("grant_type") != _EXCHANGE:
        raise errors.UnsupportedGrantType
    if form.get("subject_token_type") not in _SUBJECT_TYPES:
        raise errors.InvalidRequest(
            f"subject_token_type must be one of {', '.join(sorted(_SUBJECT_TYPES))}.",
            errors=(("subject_token_type", "Not supported."),),
        )
    if form.get("requested_token_type", _ISSUED_TYPE) != _ISSUED_TYPE:
        raise errors.InvalidRequest(f"requested_token_type must be {_ISSUED_TYPE}.")
    if "actor_token" in form:
        raise errors.InvalidRequest("Delegation is not supported; leave out actor_token.")
    if not _SCOPE_SYNTAX.fullmatch(form.get("scope", "")):
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
    headers = [(name, value) for name, value in incoming.headers if name != b"content-type"]
    headers.append((b"content-type", JSON.encode()))
    return replace_headers(incoming, headers, _encoder.encode(body))


# Error codes of RFC 6749 §5.2 and RFC 8693 §2.2.2: the first match applies; 0 keeps the status.
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


def _render_oauth_error(error: errors.WardkeyError, *, is_refresh: bool) -> RawResponse:
    """Render an error as RFC 6749 §5.2 defines it."""
    matches = ((code, status) for types, code, status in _OAUTH_ERRORS if isinstance(error, types))
    code, status = next(matches, ("invalid_request", 400))
    if is_refresh and isinstance(error, errors.InvalidToken):
        code = "invalid_grant"
    status = status or status_of(type(error))
    body = {
        "error": code,
        "error_description": error.detail,
        "error_uri": f"/problems/{error.code}",
    }
    headers = dict(CORS_HEADERS)
    if status == 401:  # noqa: PLR2004 - RFC 9110 §15.5.2
        headers["WWW-Authenticate"] = 'Basic realm="wardkey"'
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return RawResponse(status, _encoder.encode(body), JSON, headers)
