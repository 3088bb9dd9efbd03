"""Creates WebAuthn options for browsers and verifies their responses; stores nothing."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from wardkey.domain.errors import InvalidPasskey

# webauthn is imported where it is used, because the import takes a quarter of a second.
_MAX_RESPONSE_LENGTH = 20_000


@dataclass(frozen=True, slots=True)
class Site:
    """The host for which passkeys are created, and the origin of the pages that use them."""

    host: str
    origin: str

    @classmethod
    def of(cls, public_url: str) -> Site | None:
        """Return the site at a public URL; None if browsers don't allow passkeys there."""
        url = urlsplit(public_url)
        host = url.hostname or ""
        try:
            ipaddress.ip_address(host)
        except ValueError:
            is_secure = bool(host) and (url.scheme == "https" or host == "localhost")
            return cls(host, f"{url.scheme}://{url.netloc}") if is_secure else None
        # WebAuthn requires a domain name.
        return None


@dataclass(frozen=True, slots=True)
class Answer:
    """A verified response; the caller must check that its challenge is ours and unused."""

    challenge: bytes
    credential_id: bytes
    sign_count: int
    public_key: bytes = b""


def creation_options(
    site: Site, challenge: bytes, user_id: str, email: str, existing_ids: Sequence[bytes]
) -> str:
    """Return the options for `navigator.credentials.create`, as JSON."""
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
        exclude_credentials=[PublicKeyCredentialDescriptor(id=raw_id) for raw_id in existing_ids],
    )
    return options_to_json(options)


def request_options(site: Site, challenge: bytes) -> str:
    """Return the options for `navigator.credentials.get`, as JSON; the user picks the passkey."""
    from webauthn import generate_authentication_options, options_to_json
    from webauthn.helpers.structs import UserVerificationRequirement

    options = generate_authentication_options(
        rp_id=site.host,
        challenge=challenge,
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return options_to_json(options)


def check_creation(site: Site, text: str) -> Answer:
    """Verify the response to `creation_options`; raises `InvalidPasskey`."""
    from webauthn import verify_registration_response
    from webauthn.helpers import parse_client_data_json, parse_registration_credential_json

    with _webauthn_errors():
        credential = parse_registration_credential_json(text[:_MAX_RESPONSE_LENGTH])
        challenge = parse_client_data_json(credential.response.client_data_json).challenge
        result = verify_registration_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=site.host,
            expected_origin=site.origin,
            require_user_verification=True,
        )
    return Answer(challenge, result.credential_id, result.sign_count, result.credential_public_key)


def read_credential_id(text: str) -> tuple[bytes, str]:
    """Return the credential id and user id that a response names; neither is verified yet.

    Raises `InvalidPasskey`.
    """
    from webauthn.helpers import parse_authentication_credential_json

    with _webauthn_errors():
        credential = parse_authentication_credential_json(text[:_MAX_RESPONSE_LENGTH])
        return credential.raw_id, (credential.response.user_handle or b"").decode()


def check_request(site: Site, text: str, public_key: bytes, sign_count: int) -> Answer:
    """Verify the response to `request_options` with a known passkey; raises `InvalidPasskey`."""
    from webauthn import verify_authentication_response
    from webauthn.helpers import parse_authentication_credential_json, parse_client_data_json

    with _webauthn_errors():
        credential = parse_authentication_credential_json(text[:_MAX_RESPONSE_LENGTH])
        challenge = parse_client_data_json(credential.response.client_data_json).challenge
        result = verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=site.host,
            expected_origin=site.origin,
            credential_public_key=public_key,
            credential_current_sign_count=sign_count,
            require_user_verification=True,
        )
    return Answer(challenge, result.credential_id, result.new_sign_count)


@contextmanager
def _webauthn_errors() -> Iterator[None]:
    from webauthn.helpers.exceptions import WebAuthnException

    try:
        yield
    # For malformed responses the library also raises the last three.
    except (WebAuthnException, ValueError, KeyError, TypeError):
        raise InvalidPasskey from None
