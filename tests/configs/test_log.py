"""Lines of the log, as a process writes them."""

import json
import re
import subprocess
import sys

from configs.schema import Observe

SPEAK = """
import logging, sys, msgspec
from configs.log import configure
from configs.schema import Observe
configure(msgspec.json.decode(sys.argv[1], type=Observe), "engine-0")
configure(msgspec.json.decode(sys.argv[1], type=Observe), "engine-0")
for name in ("scheduler.planner", "elsewhere"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(name).log(level, "at %d", level)
try:
    raise ValueError("why")
except ValueError:
    logging.getLogger("model.runner").exception("two\\nlines")
"""


def lines(observe: Observe) -> list[str]:
    """Standard error of a process that speaks at several levels, ours and another's."""
    argument = json.dumps({"log_level": observe.log_level, "log_format": observe.log_format})
    done = subprocess.run([sys.executable, "-c", SPEAK, argument], capture_output=True, text=True, check=True)
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
    assert "exception" not in records[0]
