"""The scaffold's fold, but for keys that it misbehaves at."""

import random
import time
from pathlib import Path

from streams_udf import Fold


def down(n):
    return down(n + 1) + 1


class Udf(Fold):
    def fold(self, events):
        for e in events:
            if e.rest == "clock":
                e.row = time.time_ns()
            elif e.rest == "random":
                e.row = int(random.random() * 9)
            elif e.rest == "system":
                e.row = random.SystemRandom().randrange(9)
            elif e.rest == "file":
                Path("/etc/hostname").read_text()
            elif e.rest == "raise":
                raise ValueError("not this one")
            elif e.rest == "memory":
                e.row = len([0] * 100_000_000)
            elif e.rest == "deep":
                e.row = down(0)
            elif e.rest == "refuse":
                e.row = 5
                e.reject("no thanks")
            elif e.value["add"] >= 10:
                e.row = (e.row or 0) + 1
