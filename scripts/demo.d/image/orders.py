"""The demo's shop: counts messages by sender, and answers requests."""

import mailbox

tally = {}


def answer(sender, text):
    tally[sender] = tally.get(sender, 0) + 1
    mailbox.log(f"from {sender}: {text}")
    return f"order {sum(tally.values())} for {sender}: {text}, thank you"


mailbox.forever(lambda card, channel: mailbox.serve(card, channel, answer))
