"""Passkeys: made, renamed and removed on the account page, and used to sign in."""

from __future__ import annotations

from fastapi import Request, Response

from wardkey.actions.accounts import passkeys
from wardkey.adapters.passkeys import Site, check_creation, check_request, creation, named, request
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
    """Go to the account page from the address of a form that was sent before."""
    return see_other("/account")


@router.post("/account/passkeys/new")
def ask_new(
    asked: Request, person: SignedIn, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Show the page on which the browser makes a passkey."""
    site = _site(ctx)
    require_recent_sign_in(ctx, person, fields)
    known = [one.credential_id for one in ctx.runner.read(passkeys.list_passkeys, person.by)]
    challenge = _challenge(ctx, person.by.id)
    return render(
        asked,
        "passkey.html",
        title="Add a passkey",
        text="Your device or password manager makes it, and asks for your finger, face or PIN.",
        action="/account/passkeys",
        person=person,
        next="",
        naming=True,
        back="/account",
        kind="create",
        options=creation(site, challenge, person.by.id, person.by.label, known),
    )


@router.post("/account/passkeys")
def register(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Keep the passkey that the browser made."""
    answer = check_creation(_site(ctx), fields.text("answer"))
    name = fields.text("name").strip() or "Passkey"
    ctx.runner.write(passkeys.register, person.by, answer, name)
    return see_other("/account", done="passkey-added")


@router.post("/account/passkeys/{passkey_id}/rename")
def rename(
    passkey_id: str, asked: Request, person: SignedIn, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Call a passkey otherwise."""
    name = fields.text("name")
    try:
        ctx.runner.write(passkeys.rename, person.by, passkey_id, name)
    except Invalid as failure:
        return account_page(asked, person, ctx, renaming=Renaming(passkey_id, name, failure))
    return see_other("/account", done="passkey-renamed")


@router.post("/account/passkeys/{passkey_id}/remove")
def remove(
    passkey_id: str, person: SignedIn, fields: VerifiedForm, ctx: CurrentContext
) -> Response:
    """Let a passkey sign in no more."""
    require_recent_sign_in(ctx, person, fields)
    ctx.runner.write(passkeys.remove, person.by, passkey_id)
    return see_other("/account", done="passkey-removed")


@router.get("/account/confirm/passkey")
def ask_confirmation(asked: Request, person: SignedIn, ctx: CurrentContext) -> Response:
    """Show the page on which the browser shows one of the person's passkeys."""
    site = _site(ctx)
    return render(
        asked,
        "passkey.html",
        title="Confirm that it is you",
        text="Your browser asks which passkey, and for your finger, face or PIN.",
        action="/account/confirm/passkey",
        person=person,
        next="",
        naming=False,
        back="/account",
        kind="get",
        options=request(site, _challenge(ctx, person.by.id)),
    )


@router.post("/account/confirm/passkey")
def confirm(person: SignedIn, fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Note that the person showed a passkey of his."""
    site, text = _site(ctx), fields.text("answer")
    with ctx.throttle.attempt(*by_address("passkey", person.by.address)):
        credential_id, user_id = named(text)
        with ctx.runner.database.read() as tx:
            known = passkeys.find(tx, credential_id, user_id)
        answer = check_request(site, text, known.public_key, known.sign_count)
        ctx.runner.write(passkeys.confirm, person.by, person.session.id, known, answer)
    return see_other("/account", done="confirmed")


@router.get("/sign-in/passkey")
@router.get("/sign-in/passkey/answer")
def back_to_sign_in() -> Response:
    """Go to the form from the address of one that was sent before."""
    return see_other("/sign-in")


@router.post("/sign-in/passkey")
def ask_known(asked: Request, fields: AnonymousForm, ctx: CurrentContext) -> Response:
    """Show the page on which the browser shows a passkey."""
    site, onward = _site(ctx), own_path(fields.text("next"))
    return render(
        asked,
        "passkey.html",
        title="Sign in with a passkey",
        text="Your browser asks which one, and for your finger, face or PIN.",
        action="/sign-in/passkey/answer",
        person=None,
        next=onward,
        naming=False,
        back="/sign-in",
        kind="get",
        options=request(site, _challenge(ctx, "")),
    )


@router.post("/sign-in/passkey/answer")
def sign_in(asked: Request, fields: AnonymousForm, ctx: CurrentContext) -> Response:
    """Begin a session of whoever has the passkey."""
    site, onward, text = _site(ctx), own_path(fields.text("next")), fields.text("answer")
    by = anonymous_principal(asked, ctx)
    try:
        # An answer can't be guessed, but checking one costs a signature.
        with ctx.throttle.attempt(*by_address("passkey", by.address)):
            credential_id, user_id = named(text)
            with ctx.runner.database.read() as tx:
                known = passkeys.find(tx, credential_id, user_id)
            answer = check_request(site, text, known.public_key, known.sign_count)
            before = asked.cookies.get(COOKIE, "")
            begun = ctx.runner.write(passkeys.sign_in, by, known, answer, before)
    except (InvalidPasskey, RateLimited) as failure:
        return sign_in_page(asked, ctx, onward, "", failure)
    response = see_other(onward)
    hand_cookies(ctx, asked, response, begun)
    return response


def _site(ctx: AppContext) -> Site:
    """Return for whom passkeys are made; raises `RouteNotFound` where browsers take none."""
    site = Site.of(ctx.public_url)
    if site is None:
        raise RouteNotFound
    return site


def _challenge(ctx: AppContext, subject: str) -> bytes:
    database = ctx.runner.database
    return passkeys.new_challenge(database.vault, subject, database.clock())
