"""MQTT client records, and the validation of clients and their passwords."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from wardkey.domain.errors import (
    InvalidName,
    InvalidTag,
    InvalidUsername,
    TooManyItems,
    WeakPassword,
)
from wardkey.domain.names import clean_name
from wardkey.domain.secret import Environment
from wardkey.domain.usernames import clean_client_name, on_the_wire

MOST_TAGS = 20
SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 128
_TAG = re.compile(r"[A-Za-z0-9_.:-]{1,32}")


@dataclass(frozen=True, slots=True)
class ClientSpec:
    """The fields of a new client, except its password."""

    username: str
    environment: Environment
    display_name: str = ""
    enabled: bool = True
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A client as its organization sees it; times in epoch milliseconds."""

    id: str
    org_id: str
    environment: Environment
    username: str
    display_name: str
    enabled: bool
    tags: tuple[str, ...]
    password_set_at: int
    created_at: int
    created_by: str
    updated_at: int
    last_connected_at: int | None

    @property
    def mqtt_username(self) -> str:
        """The user name as sent over MQTT, with the organization suffix."""
        return on_the_wire(self.username, self.org_id, self.environment)


def clean_client(spec: ClientSpec) -> ClientSpec:
    """Return `spec` with its values in canonical form, or raise the first error.

    Raises `InvalidUsername`, `InvalidName`, `InvalidTag`, `TooManyItems`.
    """
    try:
        clean_client_name(spec.username)
    except ValueError as error:
        raise InvalidUsername(str(error), field="username") from None
    return replace(
        spec, display_name=clean_display_name(spec.display_name), tags=clean_tags(spec.tags)
    )


def clean_display_name(text: str) -> str:
    """Return the display name in canonical form, which may be empty; raises `InvalidName`."""
    if not text.strip():
        return ""
    try:
        return clean_name(text)
    except ValueError as error:
        raise InvalidName(str(error), field="display_name") from None


def clean_tags(items: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags without duplicates; raises `InvalidTag`, `TooManyItems`."""
    if len(items) > MOST_TAGS:
        raise TooManyItems(f"There are {len(items)} tags; send at most {MOST_TAGS}.", field="tags")
    for index, item in enumerate(items):
        if not _TAG.fullmatch(item):
            raise InvalidTag(field=f"tags.{index}")
    return tuple(dict.fromkeys(items))


def check_client_password(text: str) -> None:
    """Check that a password is long enough and works in any MQTT client.

    Raises `WeakPassword`.
    """
    if not SHORTEST_PASSWORD <= len(text) <= LONGEST_PASSWORD:
        raise WeakPassword(
            f"The password has {len(text)} characters; send {SHORTEST_PASSWORD} to "
            f"{LONGEST_PASSWORD}.",
            field="password",
        )
    if not text.isprintable():
        raise WeakPassword(
            "The password has an unprintable character; remove it.", field="password"
        )
