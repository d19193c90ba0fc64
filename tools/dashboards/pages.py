"""All dashboards by their files' names."""

from dashboards import batch, cost, engine, router, service

PAGES = {
    "service": service.PAGE,
    "router": router.PAGE,
    "engine": engine.PAGE,
    "batch": batch.PAGE,
    "cost": cost.PAGE,
}
