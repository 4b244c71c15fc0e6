"""The demo's till: sends a sale to 'orders' every ten seconds; with arguments, sends these texts once.

usage: till.py [TO TEXT...]
"""

import sys

import mailbox


def sell(card, channel):
    number = 0
    while True:
        number += 1
        mailbox.send(card, channel, mailbox.shop(card), f"sale {number}")
        channel.connection.sleep(10)


def send_once(card, channel):
    to, text = sys.argv[1], " ".join(sys.argv[2:])
    mailbox.send(card, channel, to, text)
    return f"sent to {to}"


if len(sys.argv) > 1:
    mailbox.once(send_once)
else:
    mailbox.forever(sell, mailbox.shop)
