"""The HTTP face of a region: routes, problems, streams of events, metrics."""
