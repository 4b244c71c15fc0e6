"""A checker of links from outside: programs note what they send and get, while brokers, forwarders and programs fail.

``judge`` compares the notes with the promises of ``docs/links.md`` and ``docs/client.md``. It knows nothing else.
"""
