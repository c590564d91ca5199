"""``python -m tests.fuzz --minutes N``: damage checkpoints for a while; ``--only NUMBER`` repeats one mutation."""

import argparse
import faulthandler
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.judge import Fault, fuzz_one
from tests.fuzz.subjects import subjects

parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
parser.add_argument("--minutes", type=float, default=1.0)
parser.add_argument("--count", type=int, default=sys.maxsize, help="stop after as many mutations")
parser.add_argument("--seed", type=int, default=0, help="number of the first mutation")
parser.add_argument("--only", type=int, help="the number of one mutation")
given = parser.parse_args()
faulthandler.enable()
logging.disable(logging.WARNING)

outcomes, faults = Counter(), []
with tempfile.TemporaryDirectory() as folder:
    made = subjects(Path(folder))
    target = Path(folder) / "damaged"
    target.mkdir()
    end = time.monotonic() + 60 * given.minutes
    numbers = range(given.seed, given.seed + given.count) if given.only is None else [given.only]
    for number in numbers:
        if time.monotonic() > end:
            break
        try:
            outcomes[fuzz_one(made, target, number)] += 1
        except Fault as fault:
            faults.append(number)
            print(f"mutation {number}: {fault}", flush=True)
print(json.dumps({"mutations": outcomes.total() + len(faults), **outcomes, "faults": len(faults)}))
sys.exit(bool(faults))
