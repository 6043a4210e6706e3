"""The use cases, end to end, on a system of their own: checked, with their numbers."""
