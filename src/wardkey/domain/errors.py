"""Every failure that Wardkey tells somebody, one class per stable code.

The code is the class name in snake case, the default detail is the docstring, and each code has
its page in docs/problems/. HTTP statuses and exit codes are given to the families elsewhere.
"""

from __future__ import annotations

import inspect
import re
from typing import ClassVar

from wardkey.domain.callers import CallerRecord

ERRORS_BY_CODE: dict[str, type[WardkeyError]] = {}


class WardkeyError(Exception):
    """Something that the caller can be told, with a sentence that says how to mend it.

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
    """Nobody we know: no credential, or one that opens nothing."""


class Forbidden(WardkeyError, family=True):
    """Somebody we know, who may not do this."""


class NotFound(WardkeyError, family=True):
    """It does not exist, or the caller may not see it; the two are told alike."""


class Conflict(WardkeyError, family=True):
    """The state of things forbids it now."""


class RateLimited(WardkeyError, family=True):
    """Too much in too short a time."""


class Unavailable(WardkeyError, family=True):
    """Cannot be answered now; the same call may succeed later."""


# --- input ---------------------------------------------------------------------------------


class InvalidRequest(Invalid):
    """The request does not have the documented form; see `errors` for each field at fault."""

    def __init__(
        self, detail: str | None = None, *, errors: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(detail)
        self.errors = errors


class MalformedJson(Invalid):
    """The body is not JSON; send one JSON value in UTF-8 with Content-Type application/json."""


class BodyTooLarge(Invalid):
    """The body is larger than this route takes; send less in one request."""


class HeadersTooLarge(Invalid):
    """The request line and headers are larger than 64 KiB; send less in them."""


class InvalidHttp(Invalid):
    """What was sent is no HTTP request; check the client, or a proxy in between."""


class RequestTimeout(Invalid):
    """The request did not arrive within 30 seconds; send it again, faster."""


class UnsupportedMediaType(Invalid):
    """This route takes application/json; set the Content-Type header to it."""


class InvalidName(Invalid):
    """The name is empty, too long or has characters that cannot be shown; choose another."""


class InvalidText(Invalid):
    """The text is too long or has control characters; shorten or clean it."""


class InvalidEmail(Invalid):
    """That is not an e-mail address; write it as name@host."""


class InvalidSlug(Invalid):
    """A slug has 1 to 48 characters of a-z, 0-9 and -, and no - at its ends."""


class InvalidRotationPolicy(Invalid):
    """Secret keys are due for rotation after 1 to 3,650 days; write a whole number of them."""


class InvalidMetadata(Invalid):
    """Metadata takes at most 50 short names with JSON values of up to five levels, 8 KiB in all."""


class InvalidAddress(Invalid):
    """Allowed addresses are IPv4 or IPv6 addresses or networks in CIDR form; mend the item."""


class InvalidOrigin(Invalid):
    """Origins are written as scheme://host[:port], without a path; fix the item."""


class InvalidRateLimit(Invalid):
    """A rate limit has limit, period_s and burst, each at least 1; mend the value."""


class InvalidTime(Invalid):
    """Times are RFC 3339 with an offset, such as 2030-01-31T12:00:00Z."""


class ExpiryInPast(Invalid):
    """The expiry has passed already; give a time in the future, or none."""


class InvalidGrace(Invalid):
    """A grace is now, 1h, 24h, 7d, until_revoked or a time in the future."""


class InvalidReason(Invalid):
    """That reason is not in the list; take one of RFC 5280's that fit a key."""


class InvalidCursor(Invalid):
    """The cursor was not issued by this server for this list; start again without it."""


class UnknownPermission(Invalid):
    """No such permission; take one of the list, or a scope of your own such as invoices:read."""


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
    """The password is too short or too well known; take at least 12 characters of your own."""


class WeakImport(Invalid):
    """Only secrets of at least 128 bits can be imported by their hash; issue a new key instead."""


class InvalidUsername(Invalid):
    """A client's user name has 1 to 64 characters of a-z, A-Z, 0-9, _, . and -; mend it."""


class AmbiguousProvider(Invalid):
    """Several auth providers fit; name the one that is meant by its name or id."""


class UnsupportedGrantType(Invalid):
    """Tokens are exchanged (RFC 8693) and grants refreshed here; send the grant_type of one."""


class InvalidScope(Invalid):
    """The scope is malformed (RFC 6749 §3.3); leave it out, as ACL rules say what grants may do."""


class InvalidTtl(Invalid):
    """A grant lasts 30 to 86,400 seconds; mend ttl."""


class InvalidTag(Invalid):
    """A tag has 1 to 32 characters of a-z, A-Z, 0-9, _, ., : and -; mend the item."""


class InvalidImport(Invalid):
    """An imported key needs a registered prefix and the SHA-256 of its text as 64 hex digits."""


class InvalidPrefix(Invalid):
    """An import prefix has 3 to 32 characters of a-z, A-Z, 0-9, _ and -, and is not our own."""


class InvalidCost(Invalid):
    """A cost is a whole number from 0 to 1,000,000."""


class InvalidTopic(Invalid):
    """A topic has no wildcard, white space, * or > and no $ at its start; mend the place told."""


class InvalidTopicFilter(Invalid):
    """In a topic filter + stands alone in its level and # in the last one; mend the place told."""


class InvalidAclSubject(Invalid):
    """A rule's subject has a value that fits its kind; everyone and publishable have none."""


class InvalidProvider(Invalid):
    """The provider's settings do not fit its kind; mend the field that is named."""


class ClaimMissing(Invalid):
    """The token lacks a claim that the provider's settings ask for; have the issuer add it."""


class TooManyItems(Invalid):
    """That is more than one call takes; split it."""


class AmbiguousCredentials(Invalid):
    """Two different credentials came in one request; send one of them."""


class OrganizationRequired(Invalid):
    """Name the organization: this deployment, or this person, has more than one."""


class CredentialInUrl(Invalid):
    """A key never belongs in a URL, where logs keep it; send it as Authorization: Bearer."""


# --- who is asking -------------------------------------------------------------------------


class InvalidKey(Unauthenticated, family=True):
    """The family of keys that open nothing."""

    title = "Invalid API Key"


class MissingCredentials(Unauthenticated):
    """No credential came with the request; send Authorization: Bearer and a key."""


class Malformed(InvalidKey):
    """The key is cut off or mistyped (its checksum does not fit); copy it again, whole."""


class Unknown(InvalidKey):
    """No such key; check that it belongs to this deployment and was copied whole."""


class Revoked(InvalidKey):
    """This key was revoked; use the one that replaced it or issue a new one."""


class Expired(InvalidKey):
    """This key has expired; rotate it or issue a new one."""


class Disabled(InvalidKey):
    """This key, or its organization, is disabled; an admin can enable it again."""


class InvalidUserToken(Unauthenticated):
    """The user token is unknown, ended or older than its 12 hours; sign in again."""


class InvalidHookToken(Unauthenticated):
    """No live hook token for this kind of broker; `wardkey hook create` makes one."""


class WrongPassword(Unauthenticated):
    """No such e-mail address and password; check both, or ask for a new set-up link."""


class RefreshReplayed(Unauthenticated):
    """This grant was refreshed before, so whoever has its password has all ended; exchange anew."""


class SignedOut(Unauthenticated):
    """You are signed out; sign in to go on."""


class PasswordRequired(Unauthenticated):
    """Your sign-in is older than 12 hours; confirm that it is you to go on."""


class SignInFailed(Unauthenticated):
    """The sign-in at the issuer did not succeed; sign in again."""


class InvalidPasskey(Unauthenticated):
    """The passkey is not accepted; try again, or sign in with your password."""


class InvalidLink(Unauthenticated):
    """The link is unknown, was used already or is too old; ask for a new one."""


class InvalidToken(Unauthenticated):
    """The token is not accepted; get a new one from the identity provider and send it whole."""

    # `step` names the check that failed, and a detail says why: for whoever may know.
    def __init__(self, detail: str | None = None, *, step: str = "") -> None:
        super().__init__(detail)
        self.step = step


class TokenExpired(Unauthenticated):
    """The token has expired; get a new one from the identity provider."""

    step: ClassVar[str] = "exp"


# --- what they may do ----------------------------------------------------------------------


class NotPermitted(Forbidden):
    """The caller lacks a permission that this needs; an admin can grant it."""


class WrongEnvironment(Forbidden):
    """A test key cannot open what is live, nor a live key what is test; use the other key."""


class SecretKeyRequired(Forbidden):
    """A publishable key cannot do this; call from a server with a secret key (sk_)."""


class AddressNotAllowed(Forbidden):
    """The key is not allowed from this address; extend its allowed addresses."""


class OriginNotAllowed(Forbidden):
    """The key is not allowed from this origin; extend its allowed origins."""


class SecretKeyInBrowser(Forbidden):
    """A secret key was sent by a browser: treat it as leaked, rotate it, use a publishable key."""


class ForgedForm(Forbidden):
    """The form did not come from a page of this session; load the page again and send it there."""


class SignInNotAllowed(Forbidden):
    """Nobody of that address may sign in this way; ask an admin for an invitation."""


class ExceedsOwnLimits(Forbidden):
    """A key needs keys:admin to lift limits, its own or another key's; let a member do it."""


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
    """The key belongs to another organization than the one asked for."""


# --- what is not there ---------------------------------------------------------------------


class RouteNotFound(NotFound):
    """Nothing is served at this path; see /v2/openapi.json for what is."""


class MethodNotAllowed(Invalid):
    """The path exists, but not with this method; the Allow header lists those it takes."""


class KeyNotFound(NotFound):
    """No such key in this organization and environment."""


class SecretNotFound(NotFound):
    """This key has no such secret."""


class ReceiptNotFound(NotFound):
    """No such receipt in this organization."""


class BrowserSessionNotFound(NotFound):
    """No such session of yours is open; look at the list of your sessions."""


class OrganizationNotFound(NotFound):
    """No such organization."""


class IdentityNotFound(NotFound):
    """You are not linked to that issuer; it may have been unlinked in another window."""


class PasskeyNotFound(NotFound):
    """No such passkey of yours."""


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
    """No such grant in this organization and environment, or it was over long ago."""


class ClientIdNotFound(NotFound):
    """That client id is not held in this environment; list the held ones at /v2/client-ids."""


class ClientNotFound(NotFound):
    """No such client in this organization and environment."""


class DeploymentNotFound(NotFound):
    """There is no deployment here; name its folder with --data-dir, or make one with wardkey up."""


class MasterKeyNotKept(NotFound):
    """No master key of that version is kept here; wardkey master-key status lists those kept."""


class ServerNotRunning(NotFound):
    """No server runs on this data folder; start it with wardkey up."""


class UserNotFound(NotFound):
    """Nobody with that e-mail address."""


# --- what the state forbids ----------------------------------------------------------------


class DuplicateName(Conflict):
    """Another live key of this environment has that name; choose another name or revoke it."""


class UsernameTaken(Conflict):
    """Another client of this environment has that user name; choose another or delete that one."""


class DuplicateSlug(Conflict):
    """Another organization has that slug, or had it once; choose another."""


class DuplicatePrefix(Conflict):
    """That prefix, or one that overlaps with it, is registered already; choose another."""


class DuplicateImport(Conflict):
    """That secret was imported already; each can stand behind one key only."""


class TooManyPrefixes(Conflict):
    """An organization has at most 20 import prefixes; release one that no live key has."""


class PrefixInUse(Conflict):
    """Live keys were imported under that prefix; revoke them first."""


class DuplicateScope(Conflict):
    """The scope is in the catalogue already; change its description instead."""


class ScopeInUse(Conflict):
    """Keys that are not revoked hold the scope; take it from them or revoke them first."""


class TooManyScopes(Conflict):
    """An organization has at most 1,000 scopes; delete one that no key holds."""


class KeyRevoked(Conflict):
    """The key was revoked, which is final; issue a new one."""


class TooManySecrets(Conflict):
    """The key has ten live secrets; revoke some before it is rotated again."""


class StillInUse(Conflict):
    """An old secret was used within the last hour; move its callers, or revoke it by itself."""

    def __init__(
        self, detail: str | None = None, *, callers: tuple[CallerRecord, ...] = ()
    ) -> None:
        super().__init__(detail)
        self.callers = callers


class DuplicateProvider(Conflict):
    """Another auth provider of this environment has that name; exchanges name it, so choose one."""


class TooManyProviders(Conflict):
    """An environment has at most 50 auth providers; delete one that nobody uses."""


class TooManyAclRules(Conflict):
    """An environment has at most 1,000 ACL rules; use wildcards or variables instead of more."""


class AclRulesExist(Conflict):
    """The environment has ACL rules already; say that the preset may replace them, or write one."""


class AclExceptionAboveDenial(Conflict):
    """A rule allows what one below denies, which the broker cannot hold; move the denial up."""


class AclLooseWildcard(Conflict):
    """The broker would take a rule's + for #; write # in it, or fewer rules around it."""


class IdempotencyKeyReused(Conflict):
    """That Idempotency-Key came with another body before; use a new one for a new request."""


class FormSentBefore(Conflict):
    """This form was sent before; what it made exists, and its secret is not shown again."""

    def __init__(self, detail: str | None = None, *, made: str = "") -> None:
        super().__init__(detail)
        self.made = made


class AccountNotSetUp(Conflict):
    """That address has an account without a password; sign in to it first, as it was meant to."""


class AccountExists(Conflict):
    """That address has an account already; sign in to it, then accept the invitation."""


class DuplicatePasskey(Conflict):
    """That passkey is registered already; sign in with it."""


class LastOwner(Conflict):
    """An organization always has an owner; transfer ownership first."""


class AlreadyMember(Conflict):
    """That person is a member already; change the role instead."""


class InvitationUsed(Conflict):
    """The invitation was accepted already; remove the member instead."""


# --- too much, or not now ------------------------------------------------------------------


class RateLimitExceeded(RateLimited):
    """The key's rate limit is used up; wait for Retry-After seconds."""


class QuotaExceeded(RateLimited):
    """The organization's quota is used up; raise the plan or wait for the next period."""


class TooManyAttempts(RateLimited):
    """Too many failed attempts from this address or for this name; wait and try again."""


class MetricsOff(NotFound):
    """Metrics are off; set WARDKEY_METRICS_TOKEN to a text of your choice and scrape with it."""


class WrongMetricsToken(Unauthenticated):
    """That is not the metrics token; scrape with `Authorization: Bearer` and the configured one."""


class KeySetUnavailable(Unavailable):
    """The identity provider's keys cannot be fetched, so no token can be checked; try again."""


class ProviderChanged(Unavailable):
    """The auth provider's settings changed while the token was checked; exchange it again."""


class VerifierUnavailable(Unavailable):
    """The key cannot be judged now, which says nothing about it; try again shortly."""


class Overloaded(Unavailable):
    """The server has too much work of this kind; nothing was changed; try again in a moment."""


class StorageBusy(Unavailable):
    """The database is busy; nothing was changed; try again."""


class StorageFull(Unavailable):
    """The disk is full; nothing was changed; free some space and try again."""


class StorageReadOnly(Unavailable):
    """The database cannot be written; check the permissions of the data folder."""


class StorageUnreachable(Unavailable):
    """The database does not answer; nothing is known to have changed; try again."""


class InternalError(Unavailable):
    """Something broke that should not; the request id leads to the line in the server's log."""


# --- messaging -----------------------------------------------------------------------------


class InvalidPayload(Invalid):
    """The payload does not fit its payload_encoding; mend one of the two."""


class PayloadTooLarge(Invalid):
    """The payload is over 256 KiB; send less in one message."""


class PublishDenied(Forbidden):
    """No rule allows publishing there; an admin can add an ACL rule for it."""


class SessionNotFound(NotFound):
    """There is no such live session; list those there are at /v2/sessions."""


class MessagingOff(NotFound):
    """This deployment runs without messaging; start it without --no-messaging."""


class BrokerUnreachable(Unavailable):
    """The broker cannot be reached, so nothing was sent; try again."""


class BrokerFull(Unavailable):
    """The broker's disk is nearly full, so nothing was sent; free some space and try again."""


class PublishUnconfirmed(Unavailable):
    """Sent, but the broker did not confirm it in time; it may have been published."""


# --- a deployment that cannot start --------------------------------------------------------


class UnknownSetting(Invalid):
    """No such setting; `wardkey up --help` lists them all."""


class InvalidHook(Invalid):
    """A hook is for one organization's environment; name both, or neither for all of them."""


class InvalidSetting(Invalid):
    """A setting has a value that cannot be used."""


class UnsafeListen(Invalid):
    """Beyond loopback Wardkey listens only with TLS files or behind a proxy."""


class UnsafeBroker(Invalid):
    """The broker on another machine would be spoken to in the clear; use tls:// and mqtts://."""


class UnsafeDatabase(Invalid):
    """A PostgreSQL on another machine needs sslmode=verify-full and encryption by its operator."""


class WrongMasterKey(Conflict):
    """The master key does not fit the database; start with the one that made it."""


class MasterKeyMissing(Conflict):
    """The database exists but its master key does not; put the key back where it was."""


class InvalidMasterKey(Invalid):
    """A master key is 64 hexadecimal digits."""


class DatabaseNewer(Conflict):
    """The database was made by a newer Wardkey; upgrade this installation."""


class DatabaseDamaged(Conflict):
    """The database's file is damaged; restore a backup in its place."""


class UnusableFile(Conflict):
    """A file or folder can't be read or written; check its path and its permissions."""


class UnwritableFile(Conflict):
    """The file cannot be written there; choose another place or name."""


class AlreadyRunning(Conflict):
    """A server is using this deployment; stop it first."""


class ReloadRefused(Conflict):
    """The server could not reload; it goes on as before, and the text names the reason."""


class InvalidBackup(Invalid):
    """The file is not a backup that this master key opens."""


class RevocationsUnknown(Conflict):
    """Revocations since the backup cannot be carried over; say that this is accepted."""


class AuditBroken(Conflict):
    """The audit chain does not hold; the list says at which events."""


class NotConfirmed(Conflict):
    """The confirmation was not given, so nothing was changed."""


class UnhealthyDeployment(Conflict):
    """The deployment has faults; the list says how to mend each."""
