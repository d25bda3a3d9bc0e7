#!/bin/sh
# The image takes a volume for prepared as soon as it has begun with it. What was cut off before the dump was back is begun again; nobody has
# connected to it, for it was never ready.
set -eu
if [ -e "$PGDATA.preparing" ]; then rm -rf "$PGDATA"; fi
if [ ! -e "$PGDATA" ]; then touch "$PGDATA.preparing"; fi
exec docker-entrypoint.sh postgres
