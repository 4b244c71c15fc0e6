"""Topology of links on a broker: exchanges, queues, bindings, permissions and shovels. Pure."""
