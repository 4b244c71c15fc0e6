"""nftables by libnftables: tables as nft's own text, loaded in one transaction, without starting a process.

``words`` makes parts of this text, ``library`` passes the text to libnftables, and ``ruleset`` loads it and notices
changes by others. ``table`` represents tables as values. The package knows nothing of netspace, and touches only tables
that its callers name.
"""
