"""All dashboards by their files' names."""

from dashboards import batch, engine, router, service

PAGES = {"service": service.PAGE, "router": router.PAGE, "engine": engine.PAGE, "batch": batch.PAGE}
