"""What tests, benchmarks, the demo and the documentation use; not in the wheel."""

from pathlib import Path

__all__ = ["ROOT"]

#: The checkout, in which ``python -m devtools.…`` runs.
ROOT = Path(__file__).parent.parent
