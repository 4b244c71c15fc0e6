"""Records of the system calls and file accesses that were refused to environments with ``audit: true``.

The kernel counts them by a BPF program, which can permit nothing. ``program`` encodes this program, and ``calls``
selects the data that it records of each call. ``recording`` attaches the program and makes the BPF maps of each audited
environment. ``reading`` reads the maps.
"""
