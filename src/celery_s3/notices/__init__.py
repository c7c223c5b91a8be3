"""Who waits is told by the broker that a task has ended, and may be given what was stored.

::

    a final state was stored   → Notices.tell → a Line: PUBLISH on Redis, a message to `reply_to` on RabbitMQ and SQS
    the listener's thread      → Listener     → every Subscription to that key wakes up
    whoever waits              → looks at once: at the bucket, or at the stored bytes that came along

Nothing depends on a notice: whoever waits for one looks now and then all the same (``results/waiting.py``), and what
came along is opened, checked and decoded by what opens, checks and decodes objects (``notices/notice.py``).
``docs/decisions/notices.md`` says why.
"""

from .service import Notices, Tell
from .subscription import Subscription

__all__ = ["Notices", "Subscription", "Tell"]
