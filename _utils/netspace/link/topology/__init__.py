"""Topology: exchanges, queues, bindings, permissions and shovels of links. Pure."""
