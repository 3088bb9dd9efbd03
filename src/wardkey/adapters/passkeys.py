"""What browsers are asked of passkeys, and their answers checked; nothing of it is kept here."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from wardkey.domain.errors import InvalidPasskey

# webauthn is imported where it is used, because that is a quarter of a second of a start.
_LONGEST = 20_000


@dataclass(frozen=True, slots=True)
class Site:
    """For which host passkeys are made, and on which origin's pages they are used."""

    host: str
    origin: str

    @classmethod
    def of(cls, public_url: str) -> Site | None:
        """Return the site at a public URL; None where browsers take no passkeys."""
        url = urlsplit(public_url)
        host = url.hostname or ""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            fits = bool(host) and (url.scheme == "https" or host == "localhost")
            return cls(host, f"{url.scheme}://{url.netloc}") if fits else None
        # The standard takes names alone.
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked answer; whether its challenge was ours, and is not spent, is for the caller."""

    challenge: bytes
    credential_id: bytes
    sign_count: int
    public_key: bytes = b""


def creation(site: Site, challenge: bytes, user_id: str, email: str, known: Sequence[bytes]) -> str:
    """Return what `navigator.credentials.create` takes, as JSON."""
    from webauthn import generate_registration_options, options_to_json
    from webauthn.helpers.structs import (
        AuthenticatorSelectionCriteria,
        PublicKeyCredentialDescriptor,
        ResidentKeyRequirement,
        UserVerificationRequirement,
    )

    options = generate_registration_options(
        rp_id=site.host,
        rp_name="Wardkey",
        user_id=user_id.encode(),
        user_name=email,
        challenge=challenge,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.REQUIRED,
            user_verification=UserVerificationRequirement.REQUIRED,
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=one) for one in known],
    )
    return options_to_json(options)


def request(site: Site, challenge: bytes) -> str:
    """Return what `navigator.credentials.get` takes, as JSON; the person picks the passkey."""
    from webauthn import generate_authentication_options, options_to_json
    from webauthn.helpers.structs import UserVerificationRequirement

    options = generate_authentication_options(
        rp_id=site.host,
        challenge=challenge,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return options_to_json(options)


def check_creation(site: Site, text: str) -> Answer:
    """Check the answer to `creation`; raises `InvalidPasskey`."""
    from webauthn import verify_registration_response
    from webauthn.helpers import parse_client_data_json, parse_registration_credential_json

    with _checking():
        credential = parse_registration_credential_json(text[:_LONGEST])
        challenge = parse_client_data_json(credential.response.client_data_json).challenge
        made = verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=site.host,
            expected_origin=site.origin,
            require_user_verification=True,
        )
    return Answer(challenge, made.credential_id, made.sign_count, made.credential_public_key)


def named(text: str) -> tuple[bytes, str]:
    """Return which passkey an answer to `request` is of, and whose; neither is checked yet.

    Raises `InvalidPasskey`.
    """
    from webauthn.helpers import parse_authentication_credential_json

    with _checking():
        credential = parse_authentication_credential_json(text[:_LONGEST])
        return credential.raw_id, (credential.response.user_handle or b"").decode()


def check_request(site: Site, text: str, public_key: bytes, sign_count: int) -> Answer:
    """Check the answer to `request` against the known passkey; raises `InvalidPasskey`."""
    from webauthn import verify_authentication_response
    from webauthn.helpers import parse_authentication_credential_json, parse_client_data_json

    with _checking():
        credential = parse_authentication_credential_json(text[:_LONGEST])
        challenge = parse_client_data_json(credential.response.client_data_json).challenge
        shown = verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=site.host,
            expected_origin=site.origin,
            credential_public_key=public_key,
            credential_current_sign_count=sign_count,
            require_user_verification=True,
        )
    return Answer(challenge, shown.credential_id, shown.new_sign_count)


@contextmanager
def _checking() -> Iterator[None]:
    from webauthn.helpers.exceptions import WebAuthnException

    try:
        yield
    # The last three are what the library lets through of odd answers, besides its own.
    except (WebAuthnException, ValueError, KeyError, TypeError):
        raise InvalidPasskey from None
