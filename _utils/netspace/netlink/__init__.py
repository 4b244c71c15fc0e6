"""Netlink: requests in pyroute2's words, answers as plain values, and the socket between them.

``requests`` says what is to change, ``connection`` sends many requests in one system call, ``reading``
reads what the kernel answers, and ``generic`` knows the families of generic netlink. Knows nothing of netspace.
"""
