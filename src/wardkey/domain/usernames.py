"""User names on MQTT: a name, and behind `@` the organization whose it is."""

from __future__ import annotations

import re
from typing import NamedTuple

from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ORGANIZATION = re.compile(r"org_[0-9A-Za-z]{1,36}")
_TEST = ".test"


class Username(NamedTuple):
    """The parts of a user name as it stands on the wire."""

    name: str
    org_id: str
    environment: Environment

    @property
    def scope(self) -> TenantScope:
        """The tenant scope that the name belongs to."""
        return TenantScope(self.org_id, self.environment)

    @property
    def scope_suffix(self) -> str:
        """The organization as it follows the `@`, with `.test` in the test environment."""
        return on_the_wire("", self.org_id, self.environment)[1:]


def clean_client_name(text: str) -> str:
    """Return a client's user name, 1 to 64 characters of a-z, A-Z, 0-9, `_`, `.` and `-`.

    Raises `ValueError` with a sentence that says how to mend it.
    """
    if not _NAME.fullmatch(text):
        raise ValueError(
            "A user name has 1 to 64 characters of a-z, A-Z, 0-9, _, . and -; the organization "
            "is put behind it."
        )
    return text


def on_the_wire(name: str, org_id: str, environment: Environment) -> str:
    """Return `{name}@{organization}`, with `.test` behind it in the test environment."""
    return f"{name}@{org_id}{_TEST if environment is Environment.TEST else ''}"


def with_organization(name: str, org_id: str, environment: Environment) -> str:
    """Return a user name as it is on the wire, whether its organization was left out or not."""
    return name if not name or "@" in name else on_the_wire(name, org_id, environment)


def parse_username(text: str) -> Username | None:
    """Read a user name from the wire; None if it is none of ours."""
    name, at, rest = text.rpartition("@")
    if not at or not _NAME.fullmatch(name):
        return None
    org_id = rest.removesuffix(_TEST)
    if not _ORGANIZATION.fullmatch(org_id):
        return None
    environment = Environment.TEST if rest.endswith(_TEST) else Environment.LIVE
    return Username(name, org_id, environment)
