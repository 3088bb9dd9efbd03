"""Identity providers: validation of their settings, and the token rules derived from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from urllib.parse import urlsplit

from wardkey.domain.addresses import parse_origin
from wardkey.domain.errors import InvalidOrigin, InvalidProvider, TooManyItems
from wardkey.domain.keys import Rate, check_rate
from wardkey.domain.names import clean_slug

LONGEST_TTL_S, SHORTEST_TTL_S = 86_400, 60
LONGEST_REFRESH_S = 30 * 86_400
MOST_ITEMS = 20
SHARED_SECRET = "HS256"
# The algorithms that a provider of kind oidc may use; all are asymmetric.
ALGORITHMS = (
    *(f"{kind}{bits}" for kind in ("RS", "PS", "ES") for bits in (256, 384, 512)),
    "EdDSA",
)

_FIREBASE_KEYS = (
    "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com"
)
_JWKS = "/.well-known/jwks.json"
_DISCOVERY = "/.well-known/openid-configuration"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\])"
_URL = re.compile(rf"https?://{_HOST}(?::[0-9]{{1,5}})?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")
# Google's format, including the older one with a domain before the id.
_PROJECT_ID = re.compile(r"(?:[a-z0-9.-]{1,100}:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_SECRET = re.compile(r"[!-~]{32,512}")
_VARIABLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LEVEL = re.compile(r'"([^"]+)"|([^".]+)')
_PATH = re.compile(r'(?:"[^"]+"|[^".]+)(?:\.(?:"[^"]+"|[^".]+)){0,7}')
# Claims that users of Supabase, Auth0 and Clerk can change themselves.
_EDITABLE = frozenset({"user_metadata", "raw_user_meta_data", "unsafe_metadata"})
_LONGEST_URL, _LONGEST_TEXT, _LONGEST_PATH, _LAST_PORT = 500, 255, 200, 65_535


class ProviderKind(StrEnum):
    """The kinds of providers; each has the fields of that vendor's console."""

    SUPABASE = "supabase"
    FIREBASE = "firebase"
    AUTH0 = "auth0"
    CLERK = "clerk"
    OIDC = "oidc"


class AudienceClaim(StrEnum):
    """The claim of a token that is compared with the audiences.

    Access tokens of Amazon Cognito have `client_id` and no `aud`; `azp` is the client that a token
    was issued to (OpenID Connect Core 1.0 §2).
    """

    AUD = "aud"
    CLIENT_ID = "client_id"
    AZP = "azp"


class UsernameFrom(StrEnum):
    """The source of a grant's MQTT user name."""

    USER_ID = "user_id"
    EMAIL = "email"


@dataclass(frozen=True, slots=True)
class ClaimMapping:
    """The paths of the claims that describe a token's user.

    A path has names with `.` between the levels. A name that contains dots is in double quotes; a
    path with `/` or `:` and no quotes is one name, such as `https://acme.example/roles`.
    `variables` defines `{claim.NAME}` in ACL rules for each NAME; the claims in `required` must be
    in every token. With `verified_email_only` the claim at `email_verified` must be true.
    """

    user_id: str = "sub"
    email: str = "email"
    roles: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    username_from: UsernameFrom = UsernameFrom.USER_ID
    verified_email_only: bool = False
    email_verified: str = "email_verified"


@dataclass(frozen=True, slots=True)
class ExchangeLimits:
    """The limits on exchanging a provider's tokens; `rate` applies to all of them together."""

    max_ttl_s: int = LONGEST_TTL_S
    max_refresh_s: int = LONGEST_REFRESH_S
    rate: Rate | None = None
    publishable_may_exchange: bool = False
    keyless_may_exchange: bool = False


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """The settings of a provider; exchange requests name it by `name` in `{"provider": …}`.

    supabase has `project_url`, `legacy_secret` (tokens signed with the project's shared secret)
    and, if it differs from `project_url` + `/auth/v1`, `issuer`; firebase `project_id`; auth0
    `domain` and one or more `audiences`; clerk `domain` (its Frontend API URL), `allowed_origins`
    (empty: any `azp`) and, for templates that set one, `audiences`; oidc `issuer`, `audiences`,
    `algorithms`, `audience_claim` and, if the issuer has no discovery document at its own URL,
    `jwks_uri`; `issuer` is then any text, which is compared and never fetched.
    """

    kind: ProviderKind
    name: str = ""
    project_url: str = ""
    legacy_secret: bool = False
    project_id: str = ""
    domain: str = ""
    issuer: str = ""
    audiences: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ()
    mapping: ClaimMapping = field(default_factory=ClaimMapping)
    limits: ExchangeLimits = field(default_factory=ExchangeLimits)
    jwks_uri: str = ""
    audience_claim: AudienceClaim = AudienceClaim.AUD


@dataclass(frozen=True, slots=True)
class KeySource:
    """The location of a provider's keys: `url` itself, or found by the discovery document there.

    A discovery document must have exactly this `issuer`.
    """

    url: str
    issuer: str = ""

    @property
    def is_discovery(self) -> bool:
        """Whether `url` is a discovery document."""
        return bool(self.issuer)


@dataclass(frozen=True, slots=True)
class TokenRules:
    """The requirements for a provider's tokens, all derived from its `ProviderSpec`.

    `audiences` is empty if the kind has none to check; `azp` must match one of `origins`.
    """

    kind: ProviderKind
    issuer: str
    keys: KeySource
    algorithms: frozenset[str]
    audiences: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    kid_required: bool = False
    audience_claim: AudienceClaim = AudienceClaim.AUD


# The fields of each kind of provider, besides its name, mapping and limits.
FIELDS: Mapping[ProviderKind, frozenset[str]] = {
    ProviderKind.SUPABASE: frozenset({"project_url", "legacy_secret", "issuer"}),
    ProviderKind.FIREBASE: frozenset({"project_id"}),
    ProviderKind.AUTH0: frozenset({"domain", "audiences"}),
    ProviderKind.CLERK: frozenset({"domain", "allowed_origins", "audiences"}),
    ProviderKind.OIDC: frozenset(
        {"issuer", "jwks_uri", "audiences", "audience_claim", "algorithms"}
    ),
}
_ALL_FIELDS = sorted(frozenset().union(*FIELDS.values()))


def clean_provider(spec: ProviderSpec, *, http_allowed: bool = False) -> ProviderSpec:
    """Return `spec` with its values in canonical form, or raise the first error.

    `http_allowed` means that the deployment may connect to private addresses, also without TLS.
    Raises `InvalidProvider`, `InvalidOrigin`, `InvalidRateLimit`, `TooManyItems`.
    """
    blank = ProviderSpec(spec.kind)
    for name in _ALL_FIELDS:
        if name not in FIELDS[spec.kind] and getattr(spec, name) != getattr(blank, name):
            raise InvalidProvider(
                f"A provider of kind {spec.kind} has no {name}; leave it out.", field=name
            )
    try:
        clean_slug(spec.name or spec.kind)
    except ValueError:
        raise InvalidProvider(
            "A provider's name must have 1 to 48 characters from a-z, 0-9 and -.", field="name"
        ) from None
    spec = replace(
        spec,
        name=spec.name or spec.kind.value,
        mapping=_clean_mapping(spec.kind, spec.mapping),
        limits=_clean_limits(spec.limits),
    )
    match spec.kind:
        case ProviderKind.SUPABASE:
            # Users paste the project's URL with or without the path of its auth API.
            base = _clean_url(spec.project_url, "project_url", http_allowed=http_allowed)
            base = base.rstrip("/").removesuffix("/auth/v1")
            issuer = spec.issuer and _clean_url(spec.issuer, "issuer", http_allowed=http_allowed)
            return replace(spec, project_url=base, issuer=issuer)
        case ProviderKind.FIREBASE:
            project_id = spec.project_id.strip()
            if not _PROJECT_ID.fullmatch(project_id):
                raise InvalidProvider(
                    "A Firebase project id must have 6 to 30 characters from a-z, 0-9 and -; copy "
                    "it from the console under Project settings.",
                    field="project_id",
                )
            return replace(spec, project_id=project_id)
        case ProviderKind.AUTH0:
            return replace(
                spec, domain=_clean_domain(spec.domain), audiences=_clean_audiences(spec)
            )
        case ProviderKind.CLERK:
            return replace(
                spec,
                domain=_clean_domain(spec.domain),
                allowed_origins=_clean_origins(spec.allowed_origins),
                audiences=_clean_audiences(spec, required=False),
            )
        case ProviderKind.OIDC:
            issuer, jwks_uri = _clean_issuer(spec, http_allowed=http_allowed)
            return replace(
                spec,
                issuer=issuer,
                jwks_uri=jwks_uri,
                audiences=_clean_audiences(spec),
                algorithms=_clean_algorithms(spec.algorithms),
            )


def clean_shared_secret(text: str) -> bytes:
    """Return the HS256 key for a Supabase project's shared secret, as its console shows it.

    Raises `InvalidProvider`.
    """
    secret = text.strip()
    if not _SECRET.fullmatch(secret) or "-----BEGIN" in secret or secret.startswith("{"):
        raise InvalidProvider(
            "With legacy_secret, secret must be the JWT secret from the project's console: 32 to "
            "512 characters without white space, not a public key.",
            field="secret",
        )
    return secret.encode("ascii")


def token_rules(spec: ProviderSpec) -> TokenRules:
    """Return the requirements for the tokens of a provider that `clean_provider` returned."""
    match spec.kind:
        case ProviderKind.SUPABASE:
            legacy = (SHARED_SECRET,) if spec.legacy_secret else ()
            return TokenRules(
                spec.kind,
                spec.issuer or f"{spec.project_url}/auth/v1",
                KeySource(f"{spec.project_url}/auth/v1{_JWKS}"),
                frozenset({"ES256", "RS256", *legacy}),
                ("authenticated",),
            )
        case ProviderKind.FIREBASE:
            return TokenRules(
                spec.kind,
                f"https://securetoken.google.com/{spec.project_id}",
                KeySource(_FIREBASE_KEYS),
                frozenset({"RS256"}),
                (spec.project_id,),
                kid_required=True,
            )
        case ProviderKind.AUTH0:
            return TokenRules(
                spec.kind,
                f"https://{spec.domain}/",
                KeySource(f"https://{spec.domain}{_JWKS}"),
                frozenset({"RS256"}),
                spec.audiences,
            )
        case ProviderKind.CLERK:
            return TokenRules(
                spec.kind,
                f"https://{spec.domain}",
                KeySource(f"https://{spec.domain}{_JWKS}"),
                frozenset({"RS256"}),
                spec.audiences,
                spec.allowed_origins,
            )
        case ProviderKind.OIDC:
            # OpenID Connect Discovery 1.0, §4: remove a slash at the issuer's end here.
            discovery = KeySource(f"{spec.issuer.rstrip('/')}{_DISCOVERY}", spec.issuer)
            return TokenRules(
                spec.kind,
                spec.issuer,
                KeySource(spec.jwks_uri) if spec.jwks_uri else discovery,
                frozenset(spec.algorithms),
                spec.audiences,
                audience_claim=spec.audience_claim,
            )


def levels_of(path: str) -> tuple[str, ...]:
    """Return the names in a claim's path; raises `ValueError`."""
    if not 0 < len(path) <= _LONGEST_PATH or not path.isprintable():
        raise ValueError(f"A claim's path must have 1 to {_LONGEST_PATH} printable characters.")
    if '"' not in path and ("/" in path or ":" in path):
        return (path,)
    if not _PATH.fullmatch(path):
        raise ValueError(
            "A claim's path must have at most eight names with dots between them, such as "
            "app_metadata.team; put a name that contains dots in double quotes."
        )
    return tuple(quoted or plain for quoted, plain in _LEVEL.findall(path))


def _clean_mapping(kind: ProviderKind, mapping: ClaimMapping) -> ClaimMapping:
    mapping = replace(mapping, email_verified=mapping.email_verified or "email_verified")
    if len(mapping.variables) > MOST_ITEMS or len(mapping.required) > MOST_ITEMS:
        raise TooManyItems(
            f"A mapping can have at most {MOST_ITEMS} variables and {MOST_ITEMS} required claims.",
            field="mapping",
        )
    paths = {"user_id": mapping.user_id, "email_verified": mapping.email_verified}
    paths |= {name: path for name in ("email", "roles") if (path := getattr(mapping, name))}
    paths |= {f"required.{index}": path for index, path in enumerate(mapping.required)}
    for name, path in mapping.variables.items():
        if not _VARIABLE.fullmatch(name) or name == "user_id":
            raise InvalidProvider(
                "A variable's name must have 1 to 64 characters from A-Z, a-z, 0-9, _ and -, and "
                "can't be user_id, which always exists.",
                field="mapping.variables",
            )
        paths[f"variables.{name}"] = path
    for name, path in paths.items():
        try:
            levels_of(path)
        except ValueError as error:
            raise InvalidProvider(str(error), field=f"mapping.{name}") from None
    needs_email = mapping.username_from is UsernameFrom.EMAIL or mapping.verified_email_only
    if needs_email and not mapping.email:
        raise InvalidProvider(
            "These settings need the e-mail address; set mapping.email to its claim.",
            field="mapping.email",
        )
    if mapping.verified_email_only:
        _check_email_claims(kind, mapping)
    return replace(mapping, required=tuple(dict.fromkeys(mapping.required)))


def _check_email_claims(kind: ProviderKind, mapping: ClaimMapping) -> None:
    """Raise `InvalidProvider` if users could change the claims that verify an e-mail address."""
    if kind is ProviderKind.SUPABASE:
        raise InvalidProvider(
            "A Supabase token does not prove that an e-mail address is verified: users can change "
            "their user_metadata.email_verified. Leave verified_email_only out, and turn on "
            "Confirm email in the project, which lets only verified users sign in.",
            field="mapping.verified_email_only",
        )
    for name in ("email", "email_verified"):
        path: str = getattr(mapping, name)
        if not _EDITABLE.isdisjoint(levels_of(path)):
            raise InvalidProvider(
                f"Users can change {path} themselves, so it proves nothing. Use a claim that only "
                "the issuer can set, or leave verified_email_only out.",
                field=f"mapping.{name}",
            )


def _clean_limits(limits: ExchangeLimits) -> ExchangeLimits:
    for name, most in (("max_ttl_s", LONGEST_TTL_S), ("max_refresh_s", LONGEST_REFRESH_S)):
        if not SHORTEST_TTL_S <= getattr(limits, name) <= most:
            raise InvalidProvider(
                f"{name} must be a whole number from {SHORTEST_TTL_S} to {most:,} seconds.",
                field=f"limits.{name}",
            )
    check_rate(limits.rate)
    return limits


def _clean_issuer(spec: ProviderSpec, *, http_allowed: bool) -> tuple[str, str]:
    """Return `issuer` and `jwks_uri`; with a `jwks_uri`, `issuer` need not be a URL."""
    if not spec.jwks_uri.strip():
        issuer = _clean_url(spec.issuer, "issuer", http_allowed=http_allowed)
        return issuer, ""
    issuer = spec.issuer.strip()
    if not 0 < len(issuer) <= _LONGEST_URL or not issuer.isprintable():
        raise InvalidProvider(
            "issuer must be equal to iss in the tokens, and have 1 to "
            f"{_LONGEST_URL} printable characters.",
            field="issuer",
        )
    url, _, query = spec.jwks_uri.strip().partition("?")
    url = _clean_url(url, "jwks_uri", http_allowed=http_allowed)
    if len(url) + len(query) > _LONGEST_URL or not _QUERY.fullmatch(query):
        raise InvalidProvider(
            f"jwks_uri must have at most {_LONGEST_URL} characters and no fragment.",
            field="jwks_uri",
        )
    return issuer, f"{url}?{query}" if query else url


def _clean_url(text: str, name: str, *, http_allowed: bool) -> str:
    """Return a valid URL unchanged, because issuers are compared character by character."""
    url = text.strip()
    if len(url) > _LONGEST_URL or not _URL.fullmatch(url):
        raise InvalidProvider(
            f"{name} must be a URL such as https://auth.example.com/realms/acme, with the host in "
            "lower case and without user name, question mark or fragment.",
            field=name,
        )
    if url.startswith("http://") and not http_allowed:
        raise InvalidProvider(
            f"{name} must start with https://. To test on a private network, the operator "
            "can allow http:// with `wardkey up --private-issuers`.",
            field=name,
        )
    port = re.search(r":([0-9]+)\Z", urlsplit(url).netloc)
    if port is not None and not 1 <= int(port[1]) <= _LAST_PORT:
        raise InvalidProvider(f"{name} has a port that does not exist; use 1 to 65535.", field=name)
    return url


def _clean_domain(text: str) -> str:
    """Return a host name, without the `https://…/` that the console shows around it."""
    domain = text.strip().lower().removeprefix("https://").removesuffix("/")
    if not _DOMAIN.fullmatch(domain):
        raise InvalidProvider(
            "domain must be a host name such as acme.eu.auth0.com or clerk.acme.example.",
            field="domain",
        )
    return domain


def _clean_audiences(spec: ProviderSpec, *, required: bool = True) -> tuple[str, ...]:
    if required and not spec.audiences:
        raise InvalidProvider(
            "audiences is missing; send the audience of the tokens: the API's identifier or the "
            "client id. Without it, tokens for any other application of the issuer would pass.",
            field="audiences",
        )
    if len(spec.audiences) > MOST_ITEMS:
        raise TooManyItems(
            f"There are {len(spec.audiences)} audiences; send at most {MOST_ITEMS}.",
            field="audiences",
        )
    for index, item in enumerate(spec.audiences):
        if not 0 < len(item) <= _LONGEST_TEXT or not item.isprintable() or item != item.strip():
            raise InvalidProvider(
                f"An audience must have 1 to {_LONGEST_TEXT} printable characters, and no space "
                "around them.",
                field=f"audiences.{index}",
            )
    return tuple(dict.fromkeys(spec.audiences))


def _clean_origins(items: tuple[str, ...]) -> tuple[str, ...]:
    if len(items) > MOST_ITEMS:
        raise TooManyItems(
            f"There are {len(items)} allowed origins; send at most {MOST_ITEMS}.",
            field="allowed_origins",
        )
    clean = []
    for index, item in enumerate(items):
        try:
            clean.append(parse_origin(item))
        except ValueError as error:
            raise InvalidOrigin(str(error), field=f"allowed_origins.{index}") from None
    return tuple(dict.fromkeys(clean))


def _clean_algorithms(items: tuple[str, ...]) -> tuple[str, ...]:
    for index, item in enumerate(items):
        if item not in ALGORITHMS:
            raise InvalidProvider(
                f"algorithms can contain {', '.join(ALGORITHMS)}; none and algorithms with a "
                "shared secret are never accepted.",
                field=f"algorithms.{index}",
            )
    return tuple(dict.fromkeys(items)) or ("RS256",)
