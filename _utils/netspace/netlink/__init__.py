"""Netlink: requests in pyroute2's words, answers as plain values, and the socket between them.

``requests`` makes the requests that change something, ``connection`` sends many of them in one system call, ``reading``
parses the kernel's answers, and ``generic`` finds the families of generic netlink. Imports nothing else of netspace.
"""
