"""Messages at rest: dead letters, parked messages, backups."""
