"""What watches an engine, put together from the launch file."""

from pathlib import Path

import msgspec
import pytest
import zmq

from configs.schema import Observe, Parallel, Resolved
from scheduler.kv_events import EventBatch, KVEvents
from scheduler.kv_metrics import KvMetricsPusher
from scheduler.kv_publisher import endpoint_of
from scheduler.observe import CacheFlushed
from scheduler.watchers import open_watchers

RESOLVED = Resolved(
    served_name="tiny",
    dtype="float32",
    attention="xla",
    context_length=64,
    page_size=2,
    num_pages=8,
    cache_family="radix",
    max_running_requests=2,
    chunk_tokens=16,
    loop="normal",
    depth=0,
    max_inflight=0,
    micro_batches=1,
    cache_dir="",
    choices=(),
)


@pytest.mark.parametrize(("replicas", "replica", "rank"), [(1, 0, None), (2, 0, 0), (2, 1, 1)])
def test_events_carry_the_rank_of_their_engine_only_where_there_are_several(
    tmp_path: Path, replicas: int, replica: int, rank: int | None
) -> None:
    # document: M-3
    endpoint = f"ipc://{tmp_path / 'events'}"
    watchers = open_watchers(Observe(kv_events_endpoint=endpoint), Parallel(replicas=replicas), RESOLVED, replica)
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.subscribe(b"")
        subscriber.connect(endpoint_of(endpoint, replica))
        while not subscriber.poll(20):  # what is published before a subscriber is known is lost
            for observer in watchers.observers:
                observer.observe(CacheFlushed(1))
            assert isinstance(watchers.listener, KVEvents)
            watchers.listener.flush()
        batch = msgspec.msgpack.decode(subscriber.recv_multipart()[-1], type=EventBatch)
    watchers.close()
    assert batch.dp_rank == rank


@pytest.mark.parametrize("metrics", [True, False])
def test_without_metrics_no_kv_metrics_are_pushed_and_events_are_published_all_the_same(
    tmp_path: Path, metrics: bool
) -> None:
    # document: M-9, M-21
    observe = Observe(
        metrics=metrics,
        kv_events_endpoint=f"ipc://{tmp_path / 'events'}",
        kv_metrics_endpoint=f"ipc://{tmp_path / 'metrics'}",
    )
    watchers = open_watchers(observe, Parallel(), RESOLVED, 0)
    watchers.close()
    assert any(isinstance(observer, KvMetricsPusher) for observer in watchers.observers) == metrics
    assert watchers.listener in watchers.observers
