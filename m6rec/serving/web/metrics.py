"""Figures of the server in Prometheus' format. Knows no route and no model; a scrape reads what is counted anyway."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
Report = Callable[[], dict[str, Any]]


class Metrics:
    """Counters of one server.

    Args:
        report: as :meth:`m6rec.serving.executors.base.Executor.report`.
        num_items: on offer; ``None`` = there is no catalogue.
    """

    def __init__(self, report: Report, num_items: Callable[[], int] | None = None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "m6rec_requests", "Answers by route, status and rung.", ("route", "status", "rung"), registry=self.registry
        )
        self._seconds = Histogram(
            "m6rec_request_seconds", "Seconds from the first byte to the last.", ("route",),
            buckets=BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.under_way = Gauge("m6rec_requests_under_way", "Requests not answered yet.", registry=self.registry)
        self.registry.register(_Inside(report))
        if num_items is not None:
            Gauge("m6rec_catalogue_items", "Items on offer.", registry=self.registry).set_function(num_items)

    def count(self, route: str, status: int, seconds: float, rung: str = "") -> None:
        """Count an answer; the route is its template, so that there are only so many."""
        self._requests.labels(route, str(status), rung).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return what a scrape gets."""
        return generate_latest(self.registry)


class _Inside(Collector):
    """What an executor reports, read at each scrape."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Yield queues, stages, outcomes and tiers."""
        report = self._report()
        yield _gauge("m6rec_ready", "Whether requests are taken.", (), [((), float(bool(report.get("ready"))))])
        yield _gauge("m6rec_level", "How much of the whole service there is.", (), [((), report.get("level", 1.0))])
        outcomes = [((name,), count) for name, count in report.get("requests", {}).items()]
        yield _counter("m6rec_outcomes", "Requests by what became of them.", ("outcome",), outcomes)
        stages = report.get("stages", {})
        for figure in ("queued", "running"):
            rows = [((name,), stage[figure]) for name, stage in stages.items() if figure in stage]
            yield _gauge(f"m6rec_stage_{figure}", f"Events {figure} at a stage.", ("stage",), rows)
        for figure in ("done", "expired", "failed", "hung"):
            rows = [((name,), stage[figure]) for name, stage in stages.items() if figure in stage]
            yield _counter(f"m6rec_stage_{figure}", f"Events {figure} at a stage.", ("stage",), rows)
        times = [
            ((name, what, quantile), value / 1000)
            for name, stage in stages.items()
            for what in ("wait", "run")
            for quantile, value in (stage.get(f"{what}_ms") or {}).items()
        ]
        yield _gauge("m6rec_stage_seconds", "Seconds at and in a stage.", ("stage", "what", "quantile"), times)
        tiers = report.get("tiers", {})
        for figure in ("hits", "misses"):
            rows = [((name,), tier[figure]) for name, tier in tiers.items() if figure in tier]
            yield _counter(f"m6rec_tier_{figure}", f"{figure.capitalize()} of a tier.", ("tier",), rows)
        used = [((name,), tier["used_bytes"]) for name, tier in tiers.items() if "used_bytes" in tier]
        yield _gauge("m6rec_tier_bytes", "Bytes in a tier.", ("tier",), used)


Rows = Sequence[tuple[tuple[str, ...], float]]


def _gauge(name: str, what: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = GaugeMetricFamily(name, what, labels=labels)
    for row, value in rows:
        family.add_metric(row, value)
    return family


def _counter(name: str, what: str, labels: tuple[str, ...], rows: Rows) -> Metric:
    family = CounterMetricFamily(name, what, labels=labels)
    for row, value in rows:
        family.add_metric(row, value)
    return family
