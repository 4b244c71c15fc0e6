"""Broker of the links: netspace's own RabbitMQ node, its plugin, and clients of its management API and of AMQP."""
