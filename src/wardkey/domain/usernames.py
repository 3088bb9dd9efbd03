"""MQTT user names: a name, `@`, and the organization it belongs to."""

from __future__ import annotations

import re
from typing import NamedTuple

from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ORGANIZATION = re.compile(r"org_[0-9A-Za-z]{1,36}")
_TEST = ".test"


class Username(NamedTuple):
    """The parts of a user name in MQTT."""

    name: str
    org_id: str
    environment: Environment

    @property
    def scope(self) -> TenantScope:
        """The tenant scope that the name belongs to."""
        return TenantScope(self.org_id, self.environment)

    @property
    def scope_suffix(self) -> str:
        """The part after `@`: the organization, with `.test` appended in the test environment."""
        return on_the_wire("", self.org_id, self.environment)[1:]


def clean_client_name(text: str) -> str:
    """Return a client's user name, 1 to 64 characters of a-z, A-Z, 0-9, `_`, `.` and `-`.

    Raises `ValueError` with a message that says how to fix it.
    """
    if not _NAME.fullmatch(text):
        raise ValueError(
            "A user name has 1 to 64 characters of a-z, A-Z, 0-9, _, . and -; the organization "
            "is appended to it."
        )
    return text


def on_the_wire(name: str, org_id: str, environment: Environment) -> str:
    """Return `{name}@{organization}`, with `.test` appended in the test environment."""
    return f"{name}@{org_id}{_TEST if environment is Environment.TEST else ''}"


def with_organization(name: str, org_id: str, environment: Environment) -> str:
    """Return a user name with its organization, which may be left out in `name`."""
    return name if not name or "@" in name else on_the_wire(name, org_id, environment)


def parse_username(text: str) -> Username | None:
    """Parse an MQTT user name; return None if it isn't one of ours."""
    name, at, rest = text.rpartition("@")
    if not at or not _NAME.fullmatch(name):
        return None
    org_id = rest.removesuffix(_TEST)
    if not _ORGANIZATION.fullmatch(org_id):
        return None
    environment = Environment.TEST if rest.endswith(_TEST) else Environment.LIVE
    return Username(name, org_id, environment)
