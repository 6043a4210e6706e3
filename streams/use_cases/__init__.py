"""The use cases: what each adds to the platform. A use case is thin; what two of them need belongs to a room below."""
