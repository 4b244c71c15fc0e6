"""systemd as supervisor: unit files, and calls over D-Bus."""
