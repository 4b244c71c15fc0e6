"""Broker: netspace's own RabbitMQ node, its plugin, its management API and protocol."""
