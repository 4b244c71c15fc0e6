"""netspace's own supervisor, where systemd is not PID 1."""
