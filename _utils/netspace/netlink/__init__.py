"""Netlink: requests encoded by pyroute2, the kernel's answers as plain values, and the sockets for both.

``requests`` makes the requests that change something, ``connection`` sends many of them in one system call, ``reading``
parses the kernel's answers, and ``generic`` finds the families of generic netlink. The package imports no other part of
netspace.
"""
