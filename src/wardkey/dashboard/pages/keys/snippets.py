"""Code snippets for a new key."""

from __future__ import annotations

from dataclasses import dataclass

_CURL = """curl {url}/v2/organization \\
  -H "Authorization: Bearer $WARDKEY_API_KEY"
"""
_PYTHON = """import os, urllib.request

request = urllib.request.Request(
    os.environ["WARDKEY_URL"] + "/v2/organization",
    headers={{"Authorization": "Bearer " + os.environ["WARDKEY_API_KEY"]}},
)
print(urllib.request.urlopen(request).read().decode())
"""
_NODE = """const answer = await fetch(`${{process.env.WARDKEY_URL}}/v2/organization`, {{
  headers: {{ Authorization: `Bearer ${{process.env.WARDKEY_API_KEY}}` }},
}});
console.log(await answer.json());
"""
_ACTIONS = """# Once, and paste the key when asked: gh secret set WARDKEY_API_KEY
env:
  WARDKEY_URL: {url}
  WARDKEY_API_KEY: ${{{{ secrets.WARDKEY_API_KEY }}}}
"""


@dataclass(frozen=True, slots=True)
class Snippet:
    """A snippet to paste; `secret` is true if it contains the key itself."""

    label: str
    text: str
    secret: bool = False


def snippets(url: str, secret: str) -> tuple[Snippet, ...]:
    """Return the snippets for a new secret.

    Only the first contains it; the others use an environment variable, so the secret doesn't end
    up in shell histories and source files.
    """
    env = f"# .env: never commit this file\nWARDKEY_URL={url}\nWARDKEY_API_KEY={secret}\n"
    return (
        Snippet(".env", env, secret=True),
        Snippet("curl", _CURL.format(url=url)),
        Snippet("Python", _PYTHON.format()),
        Snippet("Node", _NODE.format()),
        Snippet("GitHub Actions", _ACTIONS.format(url=url)),
    )


def verify_snippet(url: str) -> str:
    """Return a shell command that tries the key in an environment variable."""
    return _CURL.format(url=url).rstrip()
