"""Passkeys: adding, renaming and removing them, and signing in with one."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.actions.accounts import passkeys
from wardkey.adapters.passkeys import (
    Site,
    check_creation,
    check_request,
    creation_options,
    read_credential_id,
    request_options,
)
from wardkey.dashboard.pages.account.sign_in import Renaming, account_page, sign_in_page
from wardkey.dashboard.shell.auth import (
    COOKIE,
    AnonymousForm,
    SignedIn,
    VerifiedForm,
    hand_cookies,
    require_recent_sign_in,
)
from wardkey.dashboard.shell.rendering import own_path, page_router, render, see_other
from wardkey.domain.errors import Invalid, InvalidPasskey, RateLimited, RouteNotFound
from wardkey.services.throttle import by_address
from wardkey.web.caller import anonymous_principal
from wardkey.web.context import AppContext, CurrentContext

router = page_router()


@router.get("/account/passkeys")
@router.get("/account/passkeys/{rest:path}")
def back_to_account() -> Response:
    """Redirect to the account page from the URL of a form, for example after a reload."""
    return see_other("/account")


@router.post("/account/passkeys/new")
def ask_new(
    http_request: Request, person: SignedIn, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Show the page where the browser creates a passkey."""
    site = _site(ctx)
    require_recent_sign_in(ctx, person, fields)
    existing = ctx.runner.read(passkeys.list_passkeys, person.by)
    known_ids = [passkey.credential_id for passkey in existing]
    challenge = _challenge(ctx, person.by.id)
    return render(
        http_request,
        "passkey.html",
        title="Add a passkey",
        text="Your device or password manager creates it, and asks for a fingerprint, face or PIN.",
        action="/account/passkeys",
        person=person,
        next="",
        naming=True,
        back="/account",
        kind="create",
        options=creation_options(site, challenge, person.by.id, person.by.label, known_ids),
    )


@router.post("/account/passkeys")
def register(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Save the passkey that the browser created."""
    answer = check_creation(_site(ctx), fields.text("answer"))
    name = fields.text("name").strip() or "Passkey"
    ctx.runner.write(passkeys.register, person.by, answer, name)
    return see_other("/account", done="passkey-added")


@router.post("/account/passkeys/{passkey_id}/rename")
def rename(
    passkey_id: str,
    http_request: Request,
    person: SignedIn,
    fields: VerifiedForm,
    ctx: CurrentContext,
) -> Response:
    """Rename a passkey."""
    name = fields.text("name")
    try:
        ctx.runner.write(passkeys.rename, person.by, passkey_id, name)
    except Invalid as failure:
        return account_page(http_request, person, ctx, renaming=Renaming(passkey_id, name, failure))
    return see_other("/account", done="passkey-renamed")


@router.post("/account/passkeys/{passkey_id}/remove")
def remove(
    passkey_id: str, person: SignedIn, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Remove a passkey."""
    require_recent_sign_in(ctx, person, fields)
    ctx.runner.write(passkeys.remove, person.by, passkey_id)
    return see_other("/account", done="passkey-removed")


@router.get("/account/confirm/passkey")
def ask_confirmation(http_request: Request, person: SignedIn, ctx: CurrentContext) -> Response:
    """Show the page where the browser uses one of the user's passkeys."""
    site = _site(ctx)
    return render(
        http_request,
        "passkey.html",
        title="Confirm it's you",
        text="Your browser asks which passkey to use, and for a fingerprint, face or PIN.",
        action="/account/confirm/passkey",
        person=person,
        next="",
        naming=False,
        back="/account",
        kind="get",
        options=request_options(site, _challenge(ctx, person.by.id)),
    )


@router.post("/account/confirm/passkey")
def confirm(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Record that the user confirmed the session with a passkey."""
    site, text = _site(ctx), fields.text("answer")
    with ctx.throttle.attempt(*by_address("passkey", person.by.address)):
        credential_id, user_id = read_credential_id(text)
        with ctx.runner.database.read() as tx:
            known = passkeys.find(tx, credential_id, user_id)
        answer = check_request(site, text, known.public_key, known.sign_count)
        ctx.runner.write(passkeys.confirm, person.by, person.session.id, known, answer)
    return see_other("/account", done="confirmed")


@router.get("/sign-in/passkey")
@router.get("/sign-in/passkey/answer")
def back_to_sign_in() -> Response:
    """Redirect to the sign-in form from the URL of a passkey form."""
    return see_other("/sign-in")


@router.post("/sign-in/passkey")
def ask_known(http_request: Request, fields: AnonymousForm, ctx: CurrentContext) -> Response:
    """Show the page where the browser uses a passkey."""
    site, next_path = _site(ctx), own_path(fields.text("next"))
    return render(
        http_request,
        "passkey.html",
        title="Sign in with a passkey",
        text="Your browser asks which passkey to use, and for a fingerprint, face or PIN.",
        action="/sign-in/passkey/answer",
        person=None,
        next=next_path,
        naming=False,
        back="/sign-in",
        kind="get",
        options=request_options(site, _challenge(ctx, "")),
    )


@router.post("/sign-in/passkey/answer")
def sign_in(http_request: Request, fields: AnonymousForm, ctx: CurrentContext) -> Response:
    """Sign in the passkey's owner."""
    site, next_path, text = _site(ctx), own_path(fields.text("next")), fields.text("answer")
    by = anonymous_principal(http_request, ctx)
    try:
        # Answers can't be guessed, but checking one costs a signature verification.
        with ctx.throttle.attempt(*by_address("passkey", by.address)):
            credential_id, user_id = read_credential_id(text)
            with ctx.runner.database.read() as tx:
                known = passkeys.find(tx, credential_id, user_id)
            answer = check_request(site, text, known.public_key, known.sign_count)
            previous = http_request.cookies.get(COOKIE, "")
            session = ctx.runner.write(passkeys.sign_in, by, known, answer, previous)
    except (InvalidPasskey, RateLimited) as failure:
        return sign_in_page(http_request, ctx, next_path, "", failure)
    response = see_other(next_path)
    hand_cookies(ctx, http_request, response, session)
    return response


def _site(ctx: AppContext) -> Site:
    """Return the site of passkeys; raises `RouteNotFound` if the public URL can't have them."""
    site = Site.of(ctx.public_url)
    if site is None:
        raise RouteNotFound
    return site


def _challenge(ctx: AppContext, subject: str) -> bytes:
    database = ctx.runner.database
    return passkeys.new_challenge(database.vault, subject, database.clock())
