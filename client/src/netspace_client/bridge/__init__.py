"""A bridge for programs that don't use AMQP, between messages and local HTTP requests or commands.

    python -m netspace_client.bridge --listen 127.0.0.1:8080                      # POST /orders/... asks 'orders'
    python -m netspace_client.bridge --forward http://127.0.0.1:9000 -- /usr/bin/app
    python -m netspace_client.bridge --execute -- /usr/bin/handle                 # each message to its stdin

``message`` converts HTTP to messages (RFC 9112, ``message/http``) and back. ``server`` accepts HTTP requests of local
programs and sends them over links. ``worker`` receives messages from the mailbox. ``forward`` sends each message to a
local HTTP server, and ``execute`` runs a program for it. ``child`` runs a program beside the bridge. The bridge needs
the library ``h11``.
"""
