"""NAME: how many puts of 10 points or more each key of `score` got."""

from streams_udf import Fold


class Udf(Fold):
    """Called with every put, in the log's order."""

    def fold(self, events):
        """`e.row` is what the key's row holds, None where there is none."""
        for e in events:
            if e.value["add"] >= 10:
                e.row = (e.row or 0) + 1
