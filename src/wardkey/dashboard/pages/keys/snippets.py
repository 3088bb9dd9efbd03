"""How a new key is used, in the languages that most people paste from."""

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
    """A text to paste; `secret` tells that it holds the key itself."""

    label: str
    text: str
    secret: bool = False


def snippets(url: str, secret: str) -> tuple[Snippet, ...]:
    """Return the snippets of a new secret; only the first holds it, the others name the variable.

    So it stands in no shell history and no source file.
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
    """Return how a key is tried from a shell, its text in a variable."""
    return _CURL.format(url=url).rstrip()
