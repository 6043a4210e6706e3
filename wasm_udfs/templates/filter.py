"""NAME: passes the objects among the values of `kv` on to `content`."""

from streams_udf import Filter


class Udf(Filter):
    """Called with every put."""

    def filter(self, events):
        """Those kept go on as they are."""
        for e in events:
            if isinstance(e.value, dict):
                e.keep()
