"""The demo's web: sends a request to 'orders' every ten seconds; with arguments, sends these texts once."""

import sys

import mailbox


def ask_on(card, channel):
    number = 0
    while True:
        number += 1
        mailbox.log(mailbox.ask(card, channel, mailbox.shop(card), f"{number} apples"))
        channel.connection.sleep(10)


if len(sys.argv) > 1:
    text = " ".join(sys.argv[1:])
    mailbox.once(lambda card, channel: mailbox.ask(card, channel, mailbox.shop(card), text), mailbox.shop)
else:
    mailbox.forever(ask_on, mailbox.shop)
