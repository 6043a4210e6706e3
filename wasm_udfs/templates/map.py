"""NAME: every put to `score` becomes a number in `best`, under the same name."""

from streams_udf import Map


class Udf(Map):
    """Called with every put."""

    def map(self, events):
        """One put of each event, to the first output, under the event's own name."""
        for e in events:
            e.emit(float(e.value["add"]))
