from pathlib import Path

import zmq

from scheduler.kv_events import AllBlocksCleared, BlockRemoved, BlockStored
from scheduler.kv_publisher import KVPublisher
from serving.commands.events import main

# document: M-3


def test_the_tail_prints_what_was_missed_too_and_what_the_cache_holds(tmp_path: Path) -> None:
    lines: list[str] = []
    with zmq.Context() as context:
        publisher = KVPublisher(context, f"ipc://{tmp_path}/e", f"ipc://{tmp_path}/r", "", 10)
        publisher.publish([BlockStored([10, 11], None, [1, 2, 3, 4], 2), BlockStored([12], 11, [5, 6], 2)])
        publisher.publish([BlockRemoved([12]), BlockStored([11], 10, [3, 4], 2, group_idx=1)])
        publisher.publish([AllBlocksCleared()])
        arguments = ["tail", f"ipc://{tmp_path}/e", "--replay", f"ipc://{tmp_path}/r", "--count", "3"]
        assert main(arguments, lines.append) == 0
        publisher.close()
    assert lines == [
        "0 stored on GPU after the start, 4 tokens: a b",
        "0 stored on GPU after b, 2 tokens: c",
        "0 cache: 3 on GPU",
        "1 removed from GPU: c",
        "1 stored on GPU, page group 1 after a, 2 tokens: b",
        "1 cache: 2 on GPU, 1 on GPU, page group 1",
        "2 all blocks cleared",
        "2 cache: empty",
    ]


def test_nothing_within_the_time_is_no_mistake(tmp_path: Path) -> None:
    assert main(["tail", f"ipc://{tmp_path}/e", "--timeout", "0.01"]) == 0
