"""What reserves say about themselves, as metrics of prometheus_client (docs/reserve.md)."""

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from tapeseal.reserve import DataKeyReserve

_GAUGES: Final = {
    "outage_budget_seconds": "How long it can go on at the present rate without its service.",
    "outage_budget_bytes": "How many bytes its keys may still encrypt, as long as they last.",
    "bytes_per_second": "The present rate: the mean of the last minute.",
    "ready_keys": "Data keys at hand, the one in use included.",
    "failing_seconds": "How long the service has given no key, 0 where it gave the last one it was asked for.",
}
_COUNTERS: Final = {
    "generated": "Data keys that the service gave.",
    "generate_failures": "Tries that gave no data key.",
    "unwrapped": "Data keys that the service unwrapped.",
    "unwrap_hits": "Data keys that were known already when they were to be unwrapped.",
}


class ReserveCollector:
    """Reserves as a collector of prometheus_client, for `REGISTRY.register()`: tapeseal_reserve_*, by `reserve`.

    A registry takes one, for it takes no name of a metric twice. It reads the numbers when it is asked for them, with
    no call to a service.

    Args:
        reserves: each by the name that its label has; read anew each time, so that they may come and go.
    """

    def __init__(self, reserves: Mapping[str, DataKeyReserve]) -> None:
        self.reserves = reserves

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, with a sample a reserve.

        Raises:
            ForkError: a reserve belongs to the process that forked this one.
        """
        found = {name: reserve.stats() for name, reserve in dict(self.reserves).items()}
        for kind, texts in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for what, text in texts.items():
                family = kind(f"tapeseal_reserve_{what}", text, labels=["reserve"])
                for name, numbers in found.items():
                    family.add_metric([name], numbers[what])
                yield family
