"""The metrics of all processes of a pod as one: counters and histograms are summed and never fall, gauges are summed too.

Whatever only the writer does is a gauge of zero elsewhere. What a process counted before it ended stays in the sums; at most what
it counted in its last second is lost.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator

from prometheus_client import REGISTRY, Metric, generate_latest
from prometheus_client.registry import Collector

_PATIENCE_SECONDS = 0.05
_INTERVAL_SECONDS = 1.0
_OF_WRITER_ONLY = (
    "process_start_time_seconds",
    "process_max_fds",
    "python_info",
    "datastorage_spool_",
    "datastorage_dlq_",
)
"""How gauges are called of which a sum would say nothing, or which only the writer measures."""

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by the name and the labels of the sample."""


def samples() -> dict[str, Samples]:
    """Everything that this process has counted and measured, by metric."""
    return {family.name: _samples(family) for family in REGISTRY.collect()}


def _samples(family: Metric) -> Samples:
    return {(sample.name, tuple(sample.labels.items())): sample.value for sample in family.samples}


class PodMetrics(Collector):
    """Asks the other processes for their samples, and adds them to those of this one."""

    def __init__(self) -> None:
        self._ask: dict[Hashable, Callable[[], None]] = {}
        self._latest: dict[Hashable, dict[str, Samples]] = {}
        self._of_ended: dict[str, Samples] = defaultdict(dict)
        self._missing: set[Hashable] = set()
        self._all_answered = asyncio.Event()

    def add(self, process: Hashable, ask: Callable[[], None]) -> None:
        """From now on call `ask` when samples are needed; the answer comes by update()."""
        self._ask[process] = ask

    def update(self, process: Hashable, latest: dict[str, Samples]) -> None:
        """Store what a process has counted by now."""
        self._latest[process] = latest
        self._answered(process)

    def remove(self, process: Hashable) -> None:
        """The process has ended."""
        self._ask.pop(process, None)
        for family, counted in self._latest.pop(process, {}).items():
            _add(self._of_ended[family], counted)
        self._answered(process)

    def _answered(self, process: Hashable) -> None:
        self._missing.discard(process)
        if not self._missing:
            self._all_answered.set()

    async def gather(self) -> None:
        """Ask every process. One that does not answer at once counts as it was when it last did."""
        self._missing = set(self._ask)
        if not self._missing:
            return
        self._all_answered.clear()
        for ask in self._ask.values():
            ask()
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._all_answered.wait()
        except TimeoutError:
            pass

    async def gather_forever(self) -> None:
        """Once a second, so that little is lost with a process that ends."""
        while True:
            await self.gather()
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def text(self) -> bytes:
        """The metrics as Prometheus reads them."""
        await self.gather()
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():
            if family.type != "gauge" or not family.name.startswith(_OF_WRITER_ONLY):
                self._add_others(family)
            yield family

    def _add_others(self, family: Metric) -> None:
        total = _samples(family)
        if family.type != "gauge":
            _add(total, self._of_ended[family.name])
        for latest in self._latest.values():
            _add(total, latest.get(family.name, {}))
        family.samples = []
        for (name, labels), value in total.items():
            family.add_sample(name, dict(labels), value)


def _add(total: Samples, counted: Samples) -> None:
    for key, value in counted.items():
        total[key] = total.get(key, 0.0) + value
