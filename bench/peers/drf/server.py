"""djangorestframework-api-key behind one view: `server.py fill COUNT FILE`, else a WSGI app.

The key is in `Authorization: Api-Key …`, as that package expects it.
"""

import os
import sys
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.urls import path

settings.configure(
    SECRET_KEY="of the benchmark only",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": os.environ["BENCH_DATABASE"],
            "CONN_MAX_AGE": None,
            "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["rest_framework", "rest_framework_api_key"],
    # It adds Content-Length.
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [],
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "UNAUTHENTICATED_USER": None,
    },
)
django.setup()

from rest_framework.request import Request  # noqa: E402 - Django wants its settings first
from rest_framework.response import Response  # noqa: E402
from rest_framework.views import APIView  # noqa: E402
from rest_framework_api_key.models import APIKey  # noqa: E402
from rest_framework_api_key.permissions import HasAPIKey  # noqa: E402


class Verify(APIView):
    """Answers requests with a valid key."""

    permission_classes = [HasAPIKey]  # noqa: RUF012 - Django REST framework's way

    def post(self, request: Request) -> Response:  # noqa: ARG002 - the framework's signature
        """Return the constant body."""
        return Response({"valid": True})


def fill(count: int, file: Path) -> None:
    """Create the tables and keys; write the keys to `file`, one a line."""
    call_command("migrate", verbosity=0)
    made = [APIKey(name=f"bench-{n}") for n in range(count)]
    texts = [APIKey.objects.assign_key(key) for key in made]
    APIKey.objects.bulk_create(made, batch_size=500)
    file.write_text("\n".join(texts))


urlpatterns = [path("verify", Verify.as_view())]
if __name__ == "__main__":
    fill(int(sys.argv[2]), Path(sys.argv[3]))
else:
    application = get_wsgi_application()
