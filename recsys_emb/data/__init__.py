"""From raw click logs to batches: sources/ -> encode.py -> store.py -> batches.py."""
