"""The demo's shop: keeps a tally of what was sent, and answers what is asked."""

import mailbox

tally = {}


def answer(sender, text):
    tally[sender] = tally.get(sender, 0) + 1
    mailbox.log(f"from {sender}: {text}")
    return f"order {sum(tally.values())} for {sender}: {text}, thank you"


mailbox.forever(lambda card, channel: mailbox.serve(card, channel, answer))
