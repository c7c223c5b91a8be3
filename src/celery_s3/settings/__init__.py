"""The settings, resolved once into one frozen value that is passed down.

::

    resolve → sources (URL, dict, Celery's names) and aws (variables, files) → options → seal_keys → kinds → model
"""

from .model import CredentialSource, Settings
from .resolve import resolve
from .secret import Secret

__all__ = ["CredentialSource", "Secret", "Settings", "resolve"]
