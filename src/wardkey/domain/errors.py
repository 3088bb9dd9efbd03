"""Every error that Wardkey returns, one class per stable code.

The code is the class name in snake case, the default detail is the docstring, and each code has a
page in docs/problems/. web/problems.py maps the families to HTTP statuses, cli/terminal.py to exit
codes.
"""

from __future__ import annotations

import inspect
import re
from typing import ClassVar

from wardkey.domain.callers import CallerRecord

ERRORS_BY_CODE: dict[str, type[WardkeyError]] = {}


class WardkeyError(Exception):
    """An error for the caller, with a sentence that says how to fix it.

    `field` names the input at fault (a JSON path such as `allowed_addresses.0`), where there is
    one; `needs` the missing permission; `retry_after_s` the seconds to wait.
    """

    code: ClassVar[str] = ""
    title: ClassVar[str] = ""

    def __init_subclass__(cls, *, family: bool = False) -> None:
        super().__init_subclass__()
        if family:
            return
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        if "title" not in cls.__dict__:
            cls.title = cls.title or cls.code.replace("_", " ").capitalize()
        ERRORS_BY_CODE[cls.code] = cls

    def __init__(
        self,
        detail: str | None = None,
        *,
        field: str | None = None,
        needs: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.detail = detail or " ".join((inspect.getdoc(type(self)) or self.code).split())
        self.field = field
        self.needs = needs
        self.retry_after_s = retry_after_s
        super().__init__(self.detail)


class Invalid(WardkeyError, family=True):
    """The input breaks a rule; the same input will always be refused."""


class Unauthenticated(WardkeyError, family=True):
    """Authentication failed: no credential, or an invalid one."""


class Forbidden(WardkeyError, family=True):
    """The caller is authenticated, but not allowed to do this."""


class NotFound(WardkeyError, family=True):
    """It does not exist, or the caller can't see it; the response is the same."""


class Conflict(WardkeyError, family=True):
    """The current state doesn't allow it."""


class RateLimited(WardkeyError, family=True):
    """Too many requests in too short a time."""


class Unavailable(WardkeyError, family=True):
    """Wardkey can't answer now; the same call can succeed later."""


# --- input ---------------------------------------------------------------------------------


class InvalidRequest(Invalid):
    """The request does not have the documented form; `errors` lists each field at fault."""

    def __init__(
        self, detail: str | None = None, *, errors: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(detail)
        self.errors = errors


class MalformedJson(Invalid):
    """The body is not JSON; send one JSON value in UTF-8 with Content-Type application/json."""


class BodyTooLarge(Invalid):
    """The body is larger than this route accepts; send less in one request."""


class HeadersTooLarge(Invalid):
    """The request line and headers are larger than 64 KiB; send less in them."""


class InvalidHttp(Invalid):
    """That is not a valid HTTP request; check the client, or a proxy in between."""


class RequestTimeout(Invalid):
    """The request did not arrive within 30 seconds; send it again without pauses."""


class UnsupportedMediaType(Invalid):
    """This route accepts application/json; set the Content-Type header to it."""


class InvalidName(Invalid):
    """The name is empty, too long or has unprintable characters; choose another."""


class InvalidText(Invalid):
    """The text is too long or has control characters; shorten it or remove them."""


class InvalidEmail(Invalid):
    """That is not an e-mail address; write it as name@host."""


class InvalidSlug(Invalid):
    """A slug needs 1 to 48 characters of a-z, 0-9 and -, and can't start or end with -."""


class InvalidRotationPolicy(Invalid):
    """A rotation policy is a whole number of days from 1 to 3,650."""


class InvalidMetadata(Invalid):
    """Metadata can have at most 50 names, five levels of JSON and 8 KiB in all; shorten it."""


class InvalidAddress(Invalid):
    """Allowed addresses are IPv4 or IPv6 addresses or networks in CIDR form; fix the item."""


class InvalidOrigin(Invalid):
    """Origins are written as scheme://host[:port], without a path; fix the item."""


class InvalidRateLimit(Invalid):
    """A rate limit has limit, period_s and burst, each at least 1; fix the value."""


class InvalidTime(Invalid):
    """Times are RFC 3339 with an offset, such as 2030-01-31T12:00:00Z."""


class ExpiryInPast(Invalid):
    """The expiry is in the past; send a time in the future, or none."""


class InvalidGrace(Invalid):
    """The grace period is now, 1h, 24h, 7d, until_revoked or a time in the future."""


class InvalidReason(Invalid):
    """That reason is not in the list; choose one of RFC 5280's reasons that apply to keys."""


class InvalidCursor(Invalid):
    """This server did not issue that cursor for this list; start again without it."""


class UnknownPermission(Invalid):
    """No such permission; choose one of the list, or a scope of your own such as invoices:read."""


class UnknownScope(Invalid):
    """The scope is not in your catalogue; add it with POST /v2/scopes or send create_scopes."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        field: str | None = None,
        scopes: tuple[str, ...] = (),
        similar: tuple[str, ...] = (),
    ) -> None:
        super().__init__(detail, field=field)
        self.scopes = scopes
        self.similar = similar


class InvalidScopeName(Invalid):
    """A scope is resource:action in lower case, such as invoices:read, and is not Wardkey's own."""


class PermissionNotForType(Invalid):
    """A publishable key can never hold that permission; leave it out or issue a secret key."""


class OriginsNotForType(Invalid):
    """Only publishable keys have allowed origins; a secret key never belongs in a browser."""


class WeakIdempotencyKey(Invalid):
    """An Idempotency-Key needs 128 bits of randomness, for example a UUID of version 4."""


class WeakPassword(Invalid):
    """The password is too short or too common; choose at least 12 characters."""


class WeakImport(Invalid):
    """Only secrets of at least 128 bits can be imported by their hash; issue a new key instead."""


class InvalidUsername(Invalid):
    """A client's user name needs 1 to 64 characters of a-z, A-Z, 0-9, _, . and -."""


class AmbiguousProvider(Invalid):
    """Several auth providers match; send the name or id of one."""


class UnsupportedGrantType(Invalid):
    """The grant_type is not supported; send that of token exchange (RFC 8693) or refresh_token."""


class InvalidScope(Invalid):
    """The scope is malformed (RFC 6749 §3.3); leave it out: ACL rules limit what grants can do."""


class InvalidTtl(Invalid):
    """A grant lasts 30 to 86,400 seconds; change ttl."""


class InvalidTag(Invalid):
    """A tag needs 1 to 32 characters of a-z, A-Z, 0-9, _, ., : and -; fix the item."""


class InvalidImport(Invalid):
    """An imported key needs a registered prefix and the SHA-256 of its text as 64 hex digits."""


class InvalidPrefix(Invalid):
    """An import prefix needs 3 to 32 characters of a-z, A-Z, 0-9, _ and -, and can't be ours."""


class InvalidCost(Invalid):
    """A cost is a whole number from 0 to 1,000,000."""


class InvalidTopic(Invalid):
    """A topic can't contain wildcards, white space, * or >, or start with $; fix that character."""


class InvalidTopicFilter(Invalid):
    """In a topic filter, + must be a whole level and # the last one; fix that level."""


class InvalidAclSubject(Invalid):
    """A rule's subject needs a value that fits its kind; everyone and publishable have none."""


class InvalidProvider(Invalid):
    """The provider's settings do not fit its kind; fix the named field."""


class ClaimMissing(Invalid):
    """The token lacks a claim that the provider's settings require; have the issuer add it."""


class TooManyItems(Invalid):
    """That is more than one call accepts; split it."""


class AmbiguousCredentials(Invalid):
    """Two different credentials came in one request; send one of them."""


class OrganizationRequired(Invalid):
    """Name the organization: there is more than one."""


class CredentialInUrl(Invalid):
    """A key never belongs in a URL, where logs keep it; send it as Authorization: Bearer."""


# --- authentication ----------------------------------------------------------------------


class InvalidKey(Unauthenticated, family=True):
    """The family of errors about invalid keys."""

    title = "Invalid API Key"


class MissingCredentials(Unauthenticated):
    """No credential came with the request; send Authorization: Bearer and a key."""


class Malformed(InvalidKey):
    """The key is cut off or mistyped (its checksum does not match); copy all of it again."""


class Unknown(InvalidKey):
    """No such key; check that it belongs to this deployment and that all of it was copied."""


class Revoked(InvalidKey):
    """This key was revoked; use the one that replaced it or issue a new one."""


class Expired(InvalidKey):
    """This key has expired; rotate it or issue a new one."""


class Disabled(InvalidKey):
    """This key, or its organization, is disabled; an admin can enable it."""


class InvalidUserToken(Unauthenticated):
    """The user token is unknown, ended or older than its 12 hours; sign in again."""


class InvalidHookToken(Unauthenticated):
    """No live hook token for this kind of broker; `wardkey hook create` makes one."""


class WrongPassword(Unauthenticated):
    """Wrong e-mail address or password; check both, or ask for a new set-up link."""


class RefreshReplayed(Unauthenticated):
    """This grant was refreshed before, so it may be stolen and has been ended; exchange again."""


class SignedOut(Unauthenticated):
    """You are signed out; sign in to continue."""


class PasswordRequired(Unauthenticated):
    """Your sign-in is older than 12 hours; confirm your identity to continue."""


class SignInFailed(Unauthenticated):
    """The sign-in at the issuer did not succeed; sign in again."""


class InvalidPasskey(Unauthenticated):
    """The passkey is not accepted; try again, or sign in with your password."""


class InvalidLink(Unauthenticated):
    """The link is invalid, already used or expired; ask for a new one."""


class InvalidToken(Unauthenticated):
    """The token is not accepted; get a new one from the identity provider and send it whole."""

    # `step` names the check that failed.
    def __init__(self, detail: str | None = None, *, step: str = "") -> None:
        super().__init__(detail)
        self.step = step


class TokenExpired(Unauthenticated):
    """The token has expired; get a new one from the identity provider."""

    step: ClassVar[str] = "exp"


# --- permission --------------------------------------------------------------------------


class NotPermitted(Forbidden):
    """The caller lacks a required permission; an admin can grant it."""


class WrongEnvironment(Forbidden):
    """A test key does not work in live, nor a live key in test; use the other key."""


class SecretKeyRequired(Forbidden):
    """A publishable key can't do this; call from a server with a secret key (sk_)."""


class AddressNotAllowed(Forbidden):
    """The key can't be used from this address; extend its allowed addresses."""


class OriginNotAllowed(Forbidden):
    """The key can't be used from this origin; extend its allowed origins."""


class SecretKeyInBrowser(Forbidden):
    """A secret key was sent by a browser: treat it as leaked, rotate it, use a publishable key."""


class ForgedForm(Forbidden):
    """The form did not come from a page of this session; reload the page and try again."""


class SignInNotAllowed(Forbidden):
    """That address can't sign in this way; ask an admin for an invitation."""


class ExceedsOwnLimits(Forbidden):
    """A key needs keys:admin to lift its own or another key's limits; ask a member to do it."""


class LiveKeyRequired(Forbidden):
    """Live and test share this, so a test key can't reach it; use a live key, or sign in."""


class ExceedsOwnPermissions(Forbidden):
    """You can only grant permissions that you hold; ask a member whose role has them."""


class OwnerOnly(Forbidden):
    """Only the owner of the organization can do this."""


class OperatorOnly(Forbidden):
    """Only the operator of the deployment can do this, at its own command line."""


class OrganizationSuspended(Forbidden):
    """The organization is suspended; the operator of the deployment can resume it."""


class OtherOrganization(Forbidden):
    """The key belongs to another organization; use a key of the organization in the request."""


# --- not found ---------------------------------------------------------------------------


class RouteNotFound(NotFound):
    """Nothing is served at this path; see /v2/openapi.json for what is."""


class MethodNotAllowed(Invalid):
    """The path does not support this method; the Allow header lists those it supports."""


class KeyNotFound(NotFound):
    """No such key in this organization and environment."""


class SecretNotFound(NotFound):
    """This key has no such secret."""


class ReceiptNotFound(NotFound):
    """No such receipt in this organization."""


class BrowserSessionNotFound(NotFound):
    """You have no such session; see the list of your sessions."""


class OrganizationNotFound(NotFound):
    """No such organization."""


class IdentityNotFound(NotFound):
    """Your account is not linked to that issuer; another window may have unlinked it."""


class PasskeyNotFound(NotFound):
    """You have no such passkey."""


class MemberNotFound(NotFound):
    """No such member in this organization."""


class InvitationNotFound(NotFound):
    """No such invitation in this organization."""


class AclRuleNotFound(NotFound):
    """No such ACL rule in this organization and environment."""


class PrefixNotFound(NotFound):
    """No such import prefix in this organization."""


class ScopeNotFound(NotFound):
    """No such scope in this organization's catalogue."""


class ServiceKeyNotFound(NotFound):
    """No such service key in this deployment."""


class HookTokenNotFound(NotFound):
    """No such hook token in this deployment."""


class ProviderDisabled(Forbidden):
    """The auth provider is disabled, so its tokens are not exchanged; an admin can enable it."""


class ExchangeNotAllowed(Forbidden):
    """The provider's tokens are exchanged with a secret key only; call from a server."""


class ProviderNotFound(NotFound):
    """No such auth provider in this organization and environment."""


class GrantNotFound(NotFound):
    """No such grant in this organization and environment, or it ended long ago."""


class ClientIdNotFound(NotFound):
    """That client id is not held in this environment; list the held ones at /v2/client-ids."""


class ClientNotFound(NotFound):
    """No such client in this organization and environment."""


class DeploymentNotFound(NotFound):
    """No deployment here; name its folder with --data-dir, or create one with wardkey up."""


class MasterKeyNotKept(NotFound):
    """No master key of that version is kept here; wardkey master-key status lists those kept."""


class ServerNotRunning(NotFound):
    """No server runs on this data folder; start it with wardkey up."""


class UserNotFound(NotFound):
    """No user has that e-mail address."""


# --- conflicts ---------------------------------------------------------------------------


class DuplicateName(Conflict):
    """Another live key of this environment has that name; choose another name or revoke it."""


class UsernameTaken(Conflict):
    """Another client of this environment has that user name; choose another or delete that one."""


class DuplicateSlug(Conflict):
    """Another organization has that slug, or had it once; choose another."""


class DuplicatePrefix(Conflict):
    """That prefix, or one that overlaps it, is already registered; choose another."""


class DuplicateImport(Conflict):
    """That secret is already imported; each belongs to one key."""


class TooManyPrefixes(Conflict):
    """An organization has at most 20 import prefixes; release one that no live key has."""


class PrefixInUse(Conflict):
    """Live keys were imported under that prefix; revoke them first."""


class DuplicateScope(Conflict):
    """The scope is already in the catalogue; change its description instead."""


class ScopeInUse(Conflict):
    """Active keys hold the scope; remove it from them or revoke them first."""


class TooManyScopes(Conflict):
    """An organization has at most 1,000 scopes; delete one that no key holds."""


class KeyRevoked(Conflict):
    """The key is revoked, which is final; issue a new one."""


class TooManySecrets(Conflict):
    """The key has ten live secrets; revoke some before you rotate it again."""


class StillInUse(Conflict):
    """An old secret was used within the last hour; move its callers, or revoke that secret."""

    def __init__(
        self, detail: str | None = None, *, callers: tuple[CallerRecord, ...] = ()
    ) -> None:
        super().__init__(detail)
        self.callers = callers


class DuplicateProvider(Conflict):
    """Another auth provider of this environment has that name; choose another."""


class TooManyProviders(Conflict):
    """An environment has at most 50 auth providers; delete an unused one."""


class TooManyAclRules(Conflict):
    """An environment has at most 1,000 ACL rules; use wildcards or variables instead of more."""


class AclRulesExist(Conflict):
    """The environment already has ACL rules; send replace to overwrite them with the preset."""


class AclExceptionAboveDenial(Conflict):
    """A rule allows what one below it denies, which the broker can't apply; move the denial up."""


class AclLooseWildcard(Conflict):
    """The broker would treat a rule's + as #; write # in it, or simplify the rules around it."""


class IdempotencyKeyReused(Conflict):
    """That Idempotency-Key was used with another body; use a new one for a new request."""


class FormSentBefore(Conflict):
    """This form was already sent; what it created exists, and its secret is not shown again."""

    def __init__(self, detail: str | None = None, *, made: str = "") -> None:
        super().__init__(detail)
        self.made = made


class AccountNotSetUp(Conflict):
    """That address has an account without a password; sign in to it first, another way."""


class AccountExists(Conflict):
    """That address already has an account; sign in to it, then accept the invitation."""


class DuplicatePasskey(Conflict):
    """That passkey is already registered; sign in with it."""


class LastOwner(Conflict):
    """An organization always has an owner; transfer ownership first."""


class AlreadyMember(Conflict):
    """That person is already a member; change the role instead."""


class InvitationUsed(Conflict):
    """The invitation was already accepted; remove the member instead."""


# --- limits and outages ------------------------------------------------------------------


class RateLimitExceeded(RateLimited):
    """The key's rate limit is used up; wait for Retry-After seconds."""


class QuotaExceeded(RateLimited):
    """The organization's quota is used up; raise the plan or wait for the next period."""


class TooManyAttempts(RateLimited):
    """Too many failed attempts from this address or for this name; wait, then try again."""


class MetricsOff(NotFound):
    """Metrics are off; set WARDKEY_METRICS_TOKEN and scrape with that token."""


class WrongMetricsToken(Unauthenticated):
    """That is not the metrics token; scrape with `Authorization: Bearer` and the configured one."""


class KeySetUnavailable(Unavailable):
    """The identity provider's keys can't be fetched, so the token can't be verified; try again."""


class ProviderChanged(Unavailable):
    """The auth provider's settings changed while the token was checked; exchange it again."""


class VerifierUnavailable(Unavailable):
    """The key can't be verified now; it may be valid. Try again shortly."""


class Overloaded(Unavailable):
    """The server has too much work of this kind; nothing was changed. Try again in a moment."""


class StorageBusy(Unavailable):
    """The database is busy; nothing was changed. Try again."""


class StorageFull(Unavailable):
    """The disk is full; nothing was changed. Free some space and try again."""


class StorageReadOnly(Unavailable):
    """The database can't be written; check the permissions of the data folder."""


class StorageUnreachable(Unavailable):
    """The database does not respond; the change may not have been made. Try again."""


class InternalError(Unavailable):
    """An unexpected error; search the server's log for the request id."""


# --- messaging -----------------------------------------------------------------------------


class InvalidPayload(Invalid):
    """The payload does not match its payload_encoding; fix one of them."""


class PayloadTooLarge(Invalid):
    """The payload is over 256 KiB; send less in one message."""


class PublishDenied(Forbidden):
    """No rule allows publishing there; an admin can add an ACL rule for it."""


class SessionNotFound(NotFound):
    """No such live session; /v2/sessions lists them."""


class MessagingOff(NotFound):
    """This deployment runs without messaging; start it without --no-messaging."""


class BrokerUnreachable(Unavailable):
    """The broker can't be reached, so nothing was sent; try again."""


class BrokerFull(Unavailable):
    """The broker's disk is nearly full, so nothing was sent; free some space and try again."""


class PublishUnconfirmed(Unavailable):
    """The broker did not confirm the message in time; it may have been published."""


# --- deployment and command line ---------------------------------------------------------


class UnknownSetting(Invalid):
    """No such setting; `wardkey up --help` lists them all."""


class InvalidHook(Invalid):
    """A hook is for one organization's environment; name both, or neither for all of them."""


class InvalidSetting(Invalid):
    """A setting has an invalid value."""


class UnsafeListen(Invalid):
    """Wardkey listens beyond loopback only with TLS files or behind a proxy."""


class UnsafeBroker(Invalid):
    """The connection to a broker on another machine must be encrypted; use tls:// and mqtts://."""


class UnsafeDatabase(Invalid):
    """A PostgreSQL on another machine needs sslmode=verify-full and encryption by its operator."""


class WrongMasterKey(Conflict):
    """The master key does not open this database; start with the key that created it."""


class MasterKeyMissing(Conflict):
    """The database exists but its master key does not; put the key back where it was."""


class InvalidMasterKey(Invalid):
    """A master key is 64 hexadecimal digits."""


class DatabaseNewer(Conflict):
    """A newer Wardkey created the database; upgrade this installation."""


class DatabaseDamaged(Conflict):
    """The database file is damaged; restore a backup."""


class UnusableFile(Conflict):
    """A file or folder can't be read or written; check its path and its permissions."""


class UnwritableFile(Conflict):
    """The file can't be written there; choose another path."""


class AlreadyRunning(Conflict):
    """A server is using this deployment; stop it first."""


class ReloadRefused(Conflict):
    """The server could not reload and continues as before; the message gives the reason."""


class InvalidBackup(Invalid):
    """The file is not a backup that this master key opens."""


class RevocationsUnknown(Conflict):
    """Revocations since the backup can't be carried over; accept that with the option named."""


class AuditBroken(Conflict):
    """The audit chain is broken; the list names the events."""


class NotConfirmed(Conflict):
    """Not confirmed, so nothing was changed."""


class UnhealthyDeployment(Conflict):
    """The deployment has faults; the list says how to fix each."""
