"""Refused system calls and files of audited environments: counted by the kernel, and read. Permits nothing.

``program`` is the program that counts, ``calls`` says what of each call it records, ``recording`` attaches it and gives
each audited environment its maps, and ``reading`` reads these.
"""
