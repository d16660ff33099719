"""What an application imports: the two clients, and what their calls take, give and raise.

>>> with Client(url, timeout_s=5, fallback=["calm", "loud"]) as client:
...     decision = client.recommend("headlines")
...     client.feedback(decision, decision.items[0].id, 1.0).status
'accepted'
"""

from croupier.aio import AsyncClient
from croupier.blocking import Client
from croupier.wire import (
    Arm,
    Changed,
    CroupierError,
    Decision,
    Item,
    Mode,
    Policy,
    ProblemError,
    Query,
    QueueFullError,
    Row,
    Stats,
    UnavailableError,
    User,
    Verdict,
)

__all__ = [
    "Arm",
    "AsyncClient",
    "Changed",
    "Client",
    "CroupierError",
    "Decision",
    "Item",
    "Mode",
    "Policy",
    "ProblemError",
    "Query",
    "QueueFullError",
    "Row",
    "Stats",
    "UnavailableError",
    "User",
    "Verdict",
]
