"""Where outbox messages go: one file each."""
