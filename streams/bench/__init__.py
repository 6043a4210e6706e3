"""The bench room: `streams bench`, our numbers beside the peers' on the same broker in the same run."""
