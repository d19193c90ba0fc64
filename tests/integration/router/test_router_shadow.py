"""A policy that only tells what it would do, and forecasts beside what came of them."""

from penstock_router.decisions.book import DecisionBook, Inputs
from penstock_router.fleet.changes import Changes
from penstock_router.fleet.tracked import Picture
from penstock_router.metrics import RouterMetrics
from penstock_router.policy.cost import CostParams
from penstock_router.policy.decide import decide
from penstock_router.policy.facts import Match, RoutingRequest, WorkerView
from penstock_router.routing import Policies, Router
from penstock_testing.engines.fake import FakeEngine
from penstock_testing.servers.cluster import DEFAULT_SETTINGS, ask, running_cluster


async def test_a_shadow_policy_decides_beside_the_live_one_and_forecasts_are_calibrated() -> None:
    settings = DEFAULT_SETTINGS.model_copy(update={"shadow_policy": "backlog=0"})
    async with running_cluster(FakeEngine(), settings=settings) as cluster:
        assert cluster.router.fleet.calibration() == {"worker-1": (0.0, 1.0)}
        await cluster.generate(ask("def f():", "first"))
        decision = (await cluster.explain("first")).decision
        ((error_s, _),) = cluster.router.fleet.calibration().values()
    assert decision.shadow_worker_id == decision.chosen_worker_id
    assert decision.shadow_policy_digest == CostParams(backlog=0.0).digest()
    assert decision.policy_digest == CostParams().digest()
    assert error_s > 0


def test_a_shadow_policy_sees_what_the_live_one_saw() -> None:
    picture = Picture(DecisionBook(), RouterMetrics(), lambda: 0.0)
    router = Router(picture, Changes(), b"", Policies(shadow=CostParams(backlog=0.0)))
    views = (WorkerView("a", "e", backlog_tokens=9000, waiting=3), WorkerView("b", "e"))
    asked = RoutingRequest("r", "m", 1000, 31, {"a": Match(960)}, divergent=7)
    live = decide(views, asked, 0.0, 1, CostParams())
    assert live.chosen is not None
    assert live.chosen.worker_id == "b"
    assert router.shadow(Inputs(0.0, CostParams(), views, asked, 1)) == "a"
