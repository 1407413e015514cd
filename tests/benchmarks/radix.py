"""The prefix tree at 10³, 10⁴ and 10⁵ nodes: ``python -m tests.benchmarks.radix``."""

import sys

from serving.commands.bench_radix import main

if __name__ == "__main__":
    sys.exit(main(["--nodes", "1000", "10000", "100000"]))
