"""The record that routers get with every report."""

from pathlib import Path

import msgspec
import pytest
import zmq

from configs.errors import ConfigError
from scheduler.assembly import assemble
from scheduler.commands import Shutdown
from scheduler.kv_metrics import KvMetrics, KvMetricsPusher
from scheduler.loop import run
from tests.fakes import KVEchoRunner, ScriptedPort
from tests.scheduler.build import SETTINGS, SHAPES, ask
from tests.serving.process.figures import step_stats

# document: M-9

FIELDS = (
    "request_active_slots",
    "request_total_slots",
    "kv_active_blocks",
    "kv_total_blocks",
    "num_requests_waiting",
    "gpu_cache_usage_perc",
    "gpu_prefix_cache_hit_rate",
    "data_parallel_rank",
)


def test_the_record_has_the_documents_fields_in_their_order() -> None:
    assert KvMetrics.__struct_fields__ == FIELDS
    record = KvMetrics(**dict.fromkeys(FIELDS, 0))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(record)) == ["KvMetrics", *[0] * 8]


def test_a_record_comes_with_every_report_and_the_last_one_says_idle(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as receiver:
        receiver.bind(f"ipc://{tmp_path}/metrics")
        pusher = KvMetricsPusher(context, f"ipc://{tmp_path}/metrics", SHAPES.page_size, 4, 5)
        requests = [(0, ask(f"r{i}", [1, 2, 3, 4, 5, 6, 7, 8, 9], 21)) for i in range(6)]
        port = ScriptedPort({0: requests, 900: [(0, Shutdown())]})
        run(assemble(port, KVEchoRunner(SHAPES), SETTINGS, (pusher,)), SETTINGS.depth)
        records: list[KvMetrics] = []
        while receiver.poll(500 if not records or records[-1].request_active_slots else 0):
            records.append(msgspec.msgpack.decode(receiver.recv(), type=KvMetrics))
        pusher.close()
    busy, last = records[0], records[-1]
    assert 3 < len(records) < 60
    assert busy.request_total_slots == 4
    assert 0 < busy.request_active_slots <= 4
    assert busy.kv_total_blocks == SETTINGS.num_pages
    assert 0 < busy.kv_active_blocks <= SETTINGS.num_pages
    assert busy.gpu_cache_usage_perc == busy.kv_active_blocks / busy.kv_total_blocks
    assert max(record.num_requests_waiting for record in records) > 0
    assert 0 < last.gpu_prefix_cache_hit_rate < 1
    assert (last.request_active_slots, last.kv_active_blocks, last.gpu_cache_usage_perc) == (0, 0, 0.0)


def test_nothing_is_sent_once_the_socket_is_closed(tmp_path: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.PULL) as receiver:
        receiver.bind(f"ipc://{tmp_path}/metrics")
        pusher = KvMetricsPusher(context, f"ipc://{tmp_path}/metrics", 2, 4, 1)
        pusher.observe(step_stats())
        assert receiver.poll(10_000)
        receiver.recv()
        pusher.close()
        pusher.observe(step_stats())
        assert not receiver.poll(50)


def test_an_address_that_cannot_be_used_is_a_mistake_of_the_configuration() -> None:
    with zmq.Context() as context, pytest.raises(ConfigError, match="kv_metrics_endpoint"):
        KvMetricsPusher(context, "nowhere", 1, 1, 1)
