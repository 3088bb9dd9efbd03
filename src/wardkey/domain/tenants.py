"""The tenant scope: one environment of one organization, to which all tenant data belongs."""

from __future__ import annotations

from typing import NamedTuple

from wardkey.domain.secret import Environment


class TenantScope(NamedTuple):
    """An organization's live or test environment."""

    org_id: str
    environment: Environment
