"""Records of the system calls and file accesses that were refused to environments with ``audit: true``.

A BPF program in the kernel counts the refusals; it can't permit anything. ``program`` encodes this program, and
``calls`` selects the data that it records of each call. ``recording`` attaches the program and makes the BPF maps of
each audited environment. ``reading`` reads the maps.
"""
