#!/bin/sh
# A publisher with the `nats` command. NATS_URL and NATS_CREDS are as `callboard creds new NAME` printed them, INBOX is
# its inbox prefix.
set -eu
nats pub topic.news '{"type": "news", "text": "hello from a shell"}'
nats --inbox-prefix "$INBOX" req --raw actor.c '{"type": "bench.add", "amount": 3}'
