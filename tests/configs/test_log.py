"""Lines of the log, as a process writes them."""

import json
import re
import subprocess
import sys

from configs.log import rank_prefix
from configs.schema import Observe, Parallel

SPEAK = """
import logging, sys, msgspec
from configs.log import configure
from configs.schema import Observe
configure(msgspec.json.decode(sys.argv[1], type=Observe), "engine-0", sys.argv[2])
configure(msgspec.json.decode(sys.argv[1], type=Observe), "engine-0", sys.argv[2])
for name in ("scheduler.planner", "elsewhere"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(name).log(level, "at %d", level)
try:
    raise ValueError("why")
except ValueError:
    logging.getLogger("model.runner").exception("two\\nlines", extra={"fields": {"rid": "a\\nb"}})
"""


def lines(observe: Observe, ranks: str = "") -> list[str]:
    """Standard error of a process that speaks at several levels, ours and another's."""
    argument = json.dumps({"log_level": observe.log_level, "log_format": observe.log_format})
    done = subprocess.run([sys.executable, "-c", SPEAK, argument, ranks], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_ours_speak_from_the_level_asked_for_and_others_from_warning_each_line_once() -> None:
    said = [line.partition(": ")[0].split()[2:] for line in lines(Observe(log_level="info")) if "engine-0" in line]
    assert said == [
        ["INFO", "engine-0", "scheduler.planner"],
        ["WARNING", "engine-0", "scheduler.planner"],
        ["WARNING", "engine-0", "elsewhere"],
        ["ERROR", "engine-0", "model.runner"],
    ]


def test_text_lines_begin_with_the_time_to_the_millisecond() -> None:
    first = lines(Observe())[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO engine-0 scheduler\.planner: at 20", first)


def test_json_lines_are_one_object_each_with_the_exception_inside() -> None:
    records = [json.loads(line) for line in lines(Observe(log_level="debug", log_format="json"))]
    assert [record["level"] for record in records] == ["debug", "info", "warning", "warning", "error"]
    assert all(record["process"] == "engine-0" and record["time"].endswith("+00:00") for record in records)
    assert records[-1]["message"] == "two\nlines"
    assert "ValueError: why" in records[-1]["exception"]
    assert records[-1]["fields"] == {"rid": "a\nb"}
    assert not {"exception", "fields", "ranks"} & set(records[0])


def test_fields_follow_a_text_line_as_one_json_object() -> None:
    assert any(line.endswith('{"rid":"a\\nb"}') for line in lines(Observe()))


def test_ranks_follow_the_process_in_their_order_and_only_where_there_are_several() -> None:
    # document: M-15
    assert rank_prefix(Parallel(), 0) == ""
    assert rank_prefix(Parallel(tensor=2), 0) == " TP0"
    assert rank_prefix(Parallel(tensor=2, stages=2, replicas=4), 3) == " DP3 TP0 PP0"
    assert rank_prefix(Parallel(replicas=2), 1) == " DP1"
    assert " INFO engine-0 DP1 TP0 scheduler.planner: " in lines(Observe(), " DP1 TP0")[0]
    assert json.loads(lines(Observe(log_format="json"), " DP1 TP0")[0])["ranks"] == "DP1 TP0"
