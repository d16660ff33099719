"""The recommend route as FastAPI's manual shows it: pydantic models in and out, and all else as ours does it.

    bytes -> pydantic model -> RecommendRequest -> the same engine -> Decision -> pydantic model -> bytes

It is added to the app of a whole server (`PydanticServer` in benchmarks.baselines), so that agent, learner, metrics,
token, kernel and the hand-over of the decision are the same ones.
"""

from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, Field

from server.bodies import check_query
from server.routes.common import service_of
from server.schemas import CLUSTERS_MAX, K_MAX, TEXT_MAX, RecommendRequest, User

PATH = "/pydantic/recommend"


class UserIn(BaseModel):
    """Who asks."""

    model_config = ConfigDict(extra="forbid")
    embedding: list[float] | None = Field(None, min_length=1)
    clusters: list[int] | None = Field(None, min_length=1, max_length=CLUSTERS_MAX)
    weights: list[float] | None = Field(None, max_length=CLUSTERS_MAX)
    segment: str | None = Field(None, max_length=TEXT_MAX)


class RecommendIn(BaseModel):
    """What to choose, and for whom."""

    model_config = ConfigDict(extra="forbid")
    policy: str = Field(min_length=1, max_length=TEXT_MAX)
    user: UserIn = UserIn()
    k: int = Field(1, ge=1, le=K_MAX)
    exclude: list[str] | None = None
    candidates: list[str] | None = None
    mode: Literal["explore", "exploit", "thompson"] | None = None


class ItemOut(BaseModel):
    """One place of the slate."""

    id: str
    score: float
    propensity: float | None


class DecisionOut(BaseModel):
    """What to show, best first."""

    decision_id: str
    policy: str
    version: int
    items: list[ItemOut]


async def recommend(body: RecommendIn, request: Request) -> DecisionOut:
    """Choose k items for a user."""
    service = service_of(request)
    service.admit(request, "recommend")
    user = User(body.user.embedding, body.user.clusters, body.user.weights, body.user.segment)
    query = RecommendRequest(body.policy, user, body.k, body.exclude, body.candidates, body.mode)
    made = service.engine.recommend(check_query(query))
    items = [ItemOut(id=item.id, score=item.score, propensity=item.propensity) for item in made.items]
    return DecisionOut(decision_id=made.decision_id, policy=made.policy, version=made.version, items=items)


def add(app: FastAPI) -> None:
    """The route, before all others, so that no other one is tried first."""
    app.post(PATH)(recommend)
    routes: list[Any] = app.router.routes
    routes.insert(0, routes.pop())


def main() -> None:
    """`croupier`, whose app has this route too."""
    import server.app
    from server.cli import main as croupier

    make = server.app.create_app

    def create_app(*arguments: Any, **named: Any) -> server.app.App:
        app = make(*arguments, **named)
        add(app)
        return app

    server.app.create_app = create_app
    croupier()
