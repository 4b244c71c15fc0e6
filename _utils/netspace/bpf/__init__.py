"""BPF: small programs that the kernel checks and then runs, and the tables (maps) that these programs fill.

``instructions`` encodes programs, ``library`` loads them by libbpf. Of netspace, the package imports only ``errors``.
"""
