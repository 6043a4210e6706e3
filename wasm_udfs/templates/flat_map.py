"""NAME: counts the words of the values of `kv` in `score`: each adds 1 to the word's key."""

import json
import re

from streams_udf import FlatMap

WORD = re.compile(r"[A-Za-z]{1,64}")


class Udf(FlatMap):
    """Called with every put."""

    def flat_map(self, events):
        """As many puts of an event as it has words."""
        for e in events:
            text = json.dumps(e.value, ensure_ascii=False, separators=(",", ":"))
            for word in WORD.findall(text):
                e.emit({"add": 1}, key=word)
