"""Strong writes: commands in one sequence, applied by a deterministic machine; linearizable reads."""
