"""BPF: small programs that the kernel checks and then runs itself, and the tables (maps) that they fill.

``instructions`` encodes programs, ``library`` loads them by libbpf. The package imports no other part of netspace but
errors.
"""
